"""Networks drawn from a grammar, with drawn recipes, come out right, or are refused by name."""

import json
import os
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

import qtool
from tests.zoo.drawing import drawn
from tests.zoo.grammar import OPERATORS, Program
from tests.zoo.harness import Verdict, judge

QUICK, ALL, PART = 20, 500, 25
pytestmark = pytest.mark.filterwarnings("default")  # torch has its own to say of some networks


def judged(program: Program, path: Path | None = None) -> Verdict:
    """Judge a network as a training loop of one's own treats it, biases rounded at its end."""
    return judge(program.network(), program.quantization, path)


def test_there_are_at_least_25_operators_and_all_of_them_are_drawn() -> None:
    assert len(OPERATORS) >= 25
    assert {name for program in drawn(ALL) for name, _ in program.steps} == set(OPERATORS)


def test_the_same_programs_are_drawn_each_time() -> None:
    assert drawn.__wrapped__(QUICK) == drawn(QUICK)


def test_drawn_networks_are_right_or_refused_by_name() -> None:
    verdicts = {repr(program): judged(program) for program in drawn(QUICK)}
    wrong = {p: v for p, v in verdicts.items() if v.outcome not in ("right", "refused")}
    assert not wrong
    assert Counter(v.outcome for v in verdicts.values())["refused"] <= 0.1 * QUICK


def progress_file(part: int) -> Path:
    """Return where a part of the long run writes down what it has judged.

    A run that was killed goes on there, as long as no source file has changed. The folder is
    QTOOL_ZOO_PROGRESS, or one among the temporary files.
    """
    sources = [*Path(qtool.__file__).parent.rglob("*.py"), *Path(__file__).parent.glob("*.py")]
    digest = sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:16]
    usual = Path(tempfile.gettempdir()) / "qtool-zoo"
    folder = Path(os.environ.get("QTOOL_ZOO_PROGRESS", usual)) / digest
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{part:02}.jsonl"


def known(file: Path) -> dict[str, Verdict]:
    """Return program -> verdict of a run that went before; a line cut short counts for nothing."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.endswith("}"):
            item = json.loads(line)
            found[item["program"]] = Verdict(item["outcome"], item["why"])
    return found


def go_on(programs: list[Program], file: Path, folder: Path) -> dict[str, Verdict]:
    """Judge those programs, with export, that no run before has judged; return all verdicts."""
    verdicts = known(file)
    for program in programs:
        if repr(program) not in verdicts:
            verdict = judged(program, folder / "model.onnx")
            line = json.dumps({"program": repr(program), **vars(verdict)})
            with file.open("a") as stream:
                stream.write(f"{line}\n")
            verdicts[repr(program)] = verdict
    return {repr(program): verdicts[repr(program)] for program in programs}


def test_a_run_that_was_killed_goes_on_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, file, seen = drawn(QUICK)[:3], tmp_path / "part.jsonl", []

    def count(program: Program, path: Path | None = None) -> Verdict:
        seen.append(program)
        return Verdict("right")

    monkeypatch.setitem(globals(), "judged", count)
    go_on(programs[:2], file, tmp_path)
    with file.open("a") as stream:
        stream.write('{"program": "cut sh')
        stream.write("\n")
    assert list(go_on(programs, file, tmp_path)) == [repr(program) for program in programs]
    assert seen == programs


@pytest.mark.slow
@pytest.mark.parametrize("part", range(ALL // PART))
def test_every_drawn_network_is_exported(part: int, tmp_path: Path) -> None:
    programs = drawn(ALL)[part * PART : (part + 1) * PART]
    verdicts = go_on(programs, progress_file(part), tmp_path)
    wrong = {p: v for p, v in verdicts.items() if v.outcome not in ("right", "refused")}
    assert not wrong
    assert Counter(v.outcome for v in verdicts.values())["refused"] <= 0.1 * PART

"""Processes that are asked to stop, or to share a folder: how they end, and what is left."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from qtool import pipeline
from tests.kit import tree
from tests.runs.left import end, of_session, semaphores_of, start_alone, wait_until
from tests.runs.test_killed import starts, with_folders
from tests.runs.test_resume import LEARNED, checkpoint, differences, metrics, write
from tests.runs.test_stops import small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc"),
]

ENDS = {signal.SIGTERM: (143, "ended by SIGTERM"), signal.SIGHUP: (129, "ended by SIGHUP")}
TWICE = "SIGINT twice"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    pipeline.train(write(place, small(LEARNED)), run_dir=place / "run", device="cpu")
    pipeline.convert(place / "run", device="cpu")
    return place


def argv_of(command: str, place: Path) -> tuple[list[str], Path]:
    """Return a command, and the folder that it writes in."""
    if command == "compare":
        out = place / "comparison"
        names = ["--estimators", "straight_through,identity", "--seeds", "2", "--device", "cpu"]
        return ["compare", "estimators", str(place / "r.yaml"), *names, "--output", str(out)], out
    return [command, str(place / "run")], place / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, TWICE])
@pytest.mark.parametrize("command", ["convert", "export", "compare"])
def test_a_command_that_is_asked_to_stop_leaves_what_was_there(
    command: str, number: signal.Signals | str, trained: Path, tmp_path: Path
) -> None:
    place, log = tmp_path / "work", tmp_path / "log"
    shutil.copytree(trained, place)
    argv, folder = argv_of(command, place)
    before = tree(place / "run")
    first = number if isinstance(number, signal.Signals) else signal.SIGINT
    chosen = random.Random(f"{command} {number}")
    code = 0
    for attempt in range(6):  # it may be done before it is asked
        log.unlink(missing_ok=True)
        process = start_alone(*argv, log=log)
        try:
            wait_until(lambda: (folder / ".writer.json").is_file(), 60)
            time.sleep(chosen.uniform(0, 1 / (1 + attempt)))
            if process.poll() is None:
                process.send_signal(first)
            if number == TWICE:
                time.sleep(0.02)
                process.send_signal(signal.SIGINT)
            code = process.wait(timeout=30)
            assert wait_until(lambda group=process.pid: not of_session(group)) < 10
        finally:
            end(process)
        if code:
            break
        shutil.rmtree(place)
        shutil.copytree(trained, place)
    said = log.read_text()
    assert "Traceback" not in said
    if number != TWICE:
        wanted, words = ENDS.get(first, (130, "interrupted"))
        assert (code, said.splitlines()[-1]) == (wanted, words)
        assert tree(place / "run") == before
        assert [p.name for p in folder.rglob(".*")] == []
    else:
        assert code in (130, -signal.SIGINT), said  # a shell says 130 of both
        left = {k: v for k, v in tree(place / "run").items() if not k.startswith(".")}
        assert left == before
    process = start_alone(*argv, log=log)
    try:
        assert process.wait(timeout=120) == 0, log.read_text()
    finally:
        end(process)
    assert [p.name for p in folder.rglob(".*")] == []


def test_a_training_with_workers_that_is_asked_to_stop_goes_on_to_the_same_end(
    tmp_path: Path,
) -> None:
    path, whole, run = with_folders(tmp_path), tmp_path / "whole", tmp_path / "run"
    pipeline.train(path, run_dir=whole, device="cpu")
    chosen, inside = random.Random(6), 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        log = run.with_suffix(".log")
        log.unlink(missing_ok=True)
        process = starts(path, run)
        try:
            wait_until(lambda log=log: log.is_file() and "└" in log.read_text(), 60)  # the plan
            time.sleep(chosen.uniform(0.1, 0.6))
            semaphores = semaphores_of(of_session(process.pid))
            process.send_signal(number)
            begun = time.monotonic()
            code = process.wait(timeout=30)
            assert time.monotonic() - begun < 10
            assert (code, log.read_text().splitlines()[-1]) == ENDS[number]
            assert "stopped; go on with: qtool train" in log.read_text()
            assert wait_until(lambda group=process.pid: not of_session(group)) < 10
            assert [s for s in semaphores if s.exists()] == []
        finally:
            end(process)
        inside += "inside" in checkpoint(run)
    assert inside
    pipeline.train(path, run_dir=run, device="cpu", resume=True)
    assert differences(checkpoint(whole), checkpoint(run)) == []
    assert metrics(whole) == metrics(run)


def test_of_two_processes_the_second_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    path, whole, run = write(tmp_path, LEARNED), tmp_path / "whole", tmp_path / "run"
    pipeline.train(path, run_dir=whole, device="cpu")
    first = starts(path, run)
    try:
        wait_until(lambda: (run / "checkpoint.pt").is_file(), 60)
        first.send_signal(signal.SIGSTOP)  # else it may be done before the others have begun
        try:
            for argv in (
                ["train", str(path), "--run-dir", str(run), "--resume"],
                ["convert", str(run)],
                ["export", str(run)],
            ):
                log = tmp_path / f"{argv[0]}.log"
                second = start_alone(*argv, log=log)
                try:
                    assert second.wait(timeout=60) == 2, log.read_text()
                finally:
                    end(second)
                last = log.read_text().splitlines()[-1]
                assert last.startswith(f"error: {run}: process {first.pid} on "), last
        finally:
            first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=60) == 0
    finally:
        end(first)
    assert differences(checkpoint(whole), checkpoint(run)) == []
    assert metrics(whole) == metrics(run)
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in whole.iterdir())

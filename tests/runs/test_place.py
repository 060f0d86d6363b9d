"""Where a run goes: numbers that are free, and runs that are moved aside and never deleted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtool.errors import InputError
from qtool.runs.kept.place import claimed
from qtool.world.world import ALONE
from tests.kit import shell, write_recipe

RECIPE = Path("r.yaml")
ANOTHER = """
import sys
from pathlib import Path
from qtool.files.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


def a_run(folder: Path, says: str = "old") -> Path:
    """Make a folder that holds a run, as far as its names tell."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(says)
    return folder


@contextmanager
def written_by_another(folder: Path) -> Iterator[None]:
    """Let another process write in a folder while inside."""
    command = [sys.executable, "-c", ANOTHER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        yield


@pytest.mark.usefixtures("place")
def test_auto_is_the_number_after_the_last_one_of_this_name() -> None:
    for name in ("r-2", "r-10", "r-x", "rr-40", "r-3.old-50"):
        a_run(Path("runs") / name)
    with claimed("auto", RECIPE, ALONE) as folder:
        assert str(folder) == "runs/r-11"
        (folder.path / "recipe.yaml").write_text("new")
    with claimed("auto", RECIPE, ALONE, again=True) as folder:  # by torchrun, for the same run
        assert str(folder) == "runs/r-11"


@pytest.mark.usefixtures("place")
def test_auto_begins_at_1_and_leaves_no_empty_folder() -> None:
    with claimed("auto", RECIPE, ALONE) as folder:
        assert str(folder) == "runs/r-1"
    assert not Path("runs").exists()


@pytest.mark.usefixtures("place")
def test_who_looks_for_a_free_folder_passes_by_those_of_others() -> None:
    first, second = (written_by_another(Path(f"runs/r-{number}")) for number in (1, 2))
    with first, second, claimed("auto", RECIPE, ALONE) as folder:
        assert str(folder) == "runs/r-3"


@pytest.mark.usefixtures("place")
def test_a_run_that_is_overwritten_lies_beside_with_the_next_number() -> None:
    for says in ("first", "second"):
        a_run(Path("runs/r"), says)
        with claimed(None, RECIPE, ALONE, overwrite=True) as folder:
            assert not folder.path.exists()
            a_run(folder.path, "new")
        (folder.path / "recipe.yaml").unlink()
        folder.path.rmdir()

    assert {p.name: (p / "recipe.yaml").read_text() for p in Path("runs").iterdir()} == {
        "r.old-1": "first",
        "r.old-2": "second",
    }
    assert [file.name for file in Path("runs/r.old-1").iterdir()] == ["recipe.yaml"]


@pytest.mark.usefixtures("place")
def test_a_run_goes_back_where_nothing_came_of_the_new_one() -> None:
    a_run(Path("runs/r"))

    def fail() -> None:
        with claimed(None, RECIPE, ALONE, overwrite=True) as folder:
            assert not folder.path.exists()
            raise InputError("no data")

    with pytest.raises(InputError, match="no data"):
        fail()

    assert [path.name for path in Path("runs").iterdir()] == ["r"]
    assert Path("runs/r/recipe.yaml").read_text() == "old"


@pytest.mark.usefixtures("place")
def test_only_runs_that_nobody_writes_in_are_moved() -> None:
    Path("photographs").mkdir()
    Path("photographs/cat.jpg").write_bytes(b"cat")
    held = a_run(Path("runs/r"))
    with written_by_another(held):
        for wanted, recipe, why in (
            (Path("photographs"), RECIPE, "photographs: not empty, and not a run"),
            (None, RECIPE, "runs/r: process .* writes there"),
            (held, held / "recipe.yaml", "lies in runs/r, which --overwrite would move"),
        ):
            with (
                pytest.raises(InputError, match=why),
                claimed(wanted, recipe, ALONE, overwrite=True),
            ):
                pytest.fail("it should be refused")

    assert Path("photographs/cat.jpg").exists()
    assert held.is_dir()
    assert not list(Path().rglob("*.old-*"))


def test_the_commands_train_in_new_folders_and_say_which(place: Path) -> None:
    for options, run, said in (
        (["--run-dir", "auto"], "runs/r-1", ""),
        (["--run-dir", "auto"], "runs/r-2", ""),
        (["--run-dir", "runs/r-2", "--overwrite"], "runs/r-2", "moved runs/r-2 to runs/r-2.old-1"),
        (["--run-dir", "./auto", "--overwrite"], "auto", ""),
    ):
        code, out, err = shell("train", "r.yaml", *options, "--no-report", "--json")
        assert code == 0, err
        assert json.loads(out)["run"] == run
        assert said in err
    kept = json.loads((place / "runs" / "r-2.old-1" / "summary.json").read_text())
    assert kept["status"] == "finished"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--resume", "--overwrite"], "--resume goes on with a run, and --overwrite begins a new"),
        (["--resume", "--run-dir", "auto"], "--resume goes on with a run, and --run-dir auto"),
        (["--overwrite", "--run-dir", "auto"], "--overwrite has nothing to move"),
    ],
)
def test_two_ways_at_once_are_refused(options: list[str], why: str) -> None:
    code, out, err = shell("train", "r.yaml", *options)
    assert (code, out) == (2, "")
    assert why in err

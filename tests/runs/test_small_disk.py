"""A real small disk that becomes full, takes nothing, or whose folders go: every command on it."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qtool import pipeline
from qtool.files.held import GONE
from qtool.training.loop import Trainer
from tests.kit import shell, tree
from tests.runs.test_resume import LEARNED, checkpoint, differences, metrics, write
from tests.runs.test_stops import small, stop_at

pytestmark = pytest.mark.slow

KIB = 1024
SIZE = 8192  # KiB
BEFORE = "nothing may be written into"  # said before anything is done


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or mounted(place, f"size={SIZE}k"):
        pytest.skip("no small disk can be mounted")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def mounted(place: Path, options: str) -> int:
    argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return subprocess.run(argv, capture_output=True, check=False).returncode


def fill(disk: Path, leave: int) -> None:
    """Fill a disk but for so many KiB."""
    known = os.statvfs(disk)
    (disk / "full").write_bytes(bytes(max(0, known.f_bavail * known.f_frsize - leave * KIB)))


def empty(disk: Path) -> None:
    (disk / "full").unlink()


def failed(*argv: object, code: int = 1) -> str:
    """Run a command that cannot be done; return its one message."""
    ended, out, err = shell(*map(str, argv), "--device", "cpu")
    return the_message(ended, out, err, code)


def the_message(ended: object, out: str, err: str, code: int = 1) -> str:
    assert (ended, out) == (code, ""), err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [err.splitlines()[-1]] == said, err
    return said[0]


def at_step(number: int, does: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Do something before the so many-th step of a training."""
    whole, calls = Trainer._take_step, []

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(number)
        if len(calls) == number:
            does()
        return whole(*args, **kwargs)

    patch.setattr(Trainer, "_take_step", step)


@pytest.mark.parametrize("stop", [False, True], ids=["after an epoch", "by SIGTERM"])
@pytest.mark.parametrize("leave", [0, 8, 40, 300])
def test_a_checkpoint_that_does_not_fit_loses_nothing(
    leave: int, stop: bool, disk: Path, tmp_path: Path
) -> None:
    path, run, whole = write(tmp_path, small(LEARNED)), disk / "run", tmp_path / "whole"
    pipeline.train(path, run_dir=whole, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        if stop:
            stop_at(patch, Trainer, "_take_step", 9, signal.SIGTERM)
        at_step(8, lambda: fill(disk, leave), patch)
        said = failed("train", path, "--run-dir", run)
    assert said.endswith("cannot be written: No space left on device")
    status = json.loads((run / "summary.json").read_text())["status"]
    assert status == ("failed" if leave else "running")  # where not even that fits
    assert len(checkpoint(run)["history"]) == 1
    assert [p.name for p in run.glob(".*")] == []
    empty(disk)
    pipeline.train(path, run_dir=run, device="cpu", resume=True)
    assert differences(checkpoint(whole), checkpoint(run)) == []
    assert metrics(whole) == metrics(run)


@pytest.mark.parametrize("leave", [0, 8, 40])
def test_convert_and_export_that_do_not_fit_leave_what_was_there(
    leave: int, disk: Path, tmp_path: Path
) -> None:
    path, run = write(tmp_path, small(LEARNED)), disk / "run"
    pipeline.train(path, run_dir=run, device="cpu")
    for command in ("convert", "export") if leave < 40 else ("convert",):  # a report does not fit
        more = ["--device", "cpu"] if command == "convert" else []
        before = tree(run)
        fill(disk, leave)
        said = the_message(*shell(command, str(run), *more))
        assert "No space left on device" in said
        assert tree(run) == before
        empty(disk)
        assert shell(command, str(run), *more)[0] == 0


def test_a_comparison_that_does_not_fit_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, small(LEARNED))
    argv = ["compare", "estimators", str(path), "--estimators", "straight_through,identity"]
    argv += ["--seeds", "2", "--device", "cpu", "--output"]
    assert shell(*argv, str(tmp_path / "whole"))[0] == 0
    fill(disk, 1700)  # KiB: one trial, not all of them, and so none is begun
    said = the_message(*shell(*argv, str(disk / "comparison")))
    assert "4 trials with their checkpoints and reports take about" in said
    assert not list(disk.rglob("checkpoint.pt"))
    empty(disk)
    went_on, _, why = shell(*argv, str(disk / "comparison"))
    assert went_on == 0, why
    assert arms(disk / "comparison") == arms(tmp_path / "whole")


def arms(folder: Path) -> object:
    return json.loads((folder / "comparison.json").read_text())["arms"]


def test_on_a_disk_that_is_read_only_nothing_is_begun(disk: Path, tmp_path: Path) -> None:
    path, run, begun = write(tmp_path, small(LEARNED)), disk / "run", disk / "begun"
    pipeline.train(path, run_dir=run, device="cpu")
    shutil.copytree(run, begun)
    (begun / "summary.json").unlink()
    mounted(disk, "remount,ro")
    before = tree(disk)
    cpu = ["--device", "cpu"]
    for argv, code, why in (
        (["train", str(path), "--run-dir", str(begun), "--resume", *cpu], 2, BEFORE),
        (["train", str(path), "--run-dir", str(disk / "new"), *cpu], 2, BEFORE),
        (["convert", str(run), *cpu], 1, "cannot be locked: Read-only file system"),
        (["export", str(run)], 2, BEFORE),
        (["compare", "estimators", str(path), "--output", str(disk / "new"), *cpu], 2, BEFORE),
    ):
        assert why in the_message(*shell(*argv), code=code)
    assert tree(disk) == before


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another one in its place"])
def test_a_run_folder_that_is_removed_in_training_is_not_made_again(
    again: bool, tmp_path: Path
) -> None:
    path, run = write(tmp_path, small(LEARNED)), tmp_path / "run"

    def remove() -> None:
        shutil.rmtree(run)
        if again:
            run.mkdir()
            (run / "another's").touch()

    with pytest.MonkeyPatch.context() as patch:
        at_step(8, remove, patch)
        said = failed("train", path, "--run-dir", run)
    assert said.endswith(f"cannot be written: {GONE}")
    there = [p.name for p in run.iterdir()] if run.exists() else None
    assert there == (["another's"] if again else None)

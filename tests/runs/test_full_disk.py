"""Disks that are full, or take nothing any more: one message, exit 1, and nothing that was is lost.

Every file of a tiny training fails in turn here, at one of the moments of its writing; the test
marked slow has all moments, and lets each run go on once there is room again.
"""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool.files import whole
from qtool.runs.kept import checkpoint
from tests.kit import shell, write_recipe
from tests.runs.test_resume import checkpoint as contents
from tests.runs.test_resume import differences

MOMENTS = ("made", "half written", "on the disk", "moved")  # of the writing of one file
FILES = 17  # recipe, environment, summaries, metrics, checkpoints, digests, weights, answers
TINY: dict[str, Any] = {
    "data.train_samples": 16,
    "data.batch_size": 512,
    "training.epochs": 2,
    "training.optimizer": {"name": "sgd", "momentum": 0.9},
    "quantization.weights.range": "learned",
}
REASONS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO)


class Disk:
    """A disk that fails when some file is written, once or from then on.

    Attributes:
        count: of files that were begun at each moment.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Stand in for what writes files in qtool; the disk is a good one still."""
        self.count: dict[str, int] = dict.fromkeys(MOMENTS, 0)
        self.fails_at: tuple[str, int] | None = None
        self.for_good, self.reason = False, errno.ENOSPC
        writing = whole._no_room_said

        @contextmanager
        def half_written(path: Path, folder: Path) -> Iterator[None]:
            with writing(path, folder):
                yield
                self.comes_to("half written", partly=folder / path.name)

        patch.setattr(whole, "_no_room_said", half_written)
        patch.setattr(tempfile, "mkdtemp", self.before(tempfile.mkdtemp, "made"))
        patch.setattr(os, "fsync", self.synced)
        patch.setattr(os, "replace", self.before(os.replace, "moved"))

    def before(self, does: Callable[..., Any], moment: str) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            self.comes_to(moment)
            return does(*args)

        return called

    def synced(self, opened: int) -> None:
        """Stand in for os.fsync, whose time no test needs; folders are synced, too."""
        if stat.S_ISREG(os.fstat(opened).st_mode):
            self.comes_to("on the disk")

    def comes_to(self, moment: str, partly: Path | None = None) -> None:
        """Count a file at a moment of its writing, and fail where that was asked for."""
        self.count[moment] += 1
        if self.fails_at is None:
            return
        failing, number = self.fails_at
        begun = moment == failing and self.count[moment] == number
        if begun or (self.for_good and self.count[failing] >= number):
            if partly is not None:
                half = partly.read_bytes()[: partly.stat().st_size // 2]
                partly.unlink()  # it may be another name of a good file
                partly.write_bytes(half)
            raise OSError(self.reason, os.strerror(self.reason))


def train(recipe: Path, run: Path, *more: str) -> tuple[object, str, str]:
    return shell("train", str(recipe), "--run-dir", str(run), "--device", "cpu", *more)


def trained_on_a_bad_disk(
    recipe: Path, run: Path, *, moment: str, file: int, for_good: bool, reason: int
) -> None:
    """Train where the so many-th file fails; see what is said, and what is there."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        disk.fails_at, disk.for_good, disk.reason = (moment, file), for_good, reason
        code, out, err = train(recipe, run)
    assert (code, out) == (1, ""), err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, err
    assert err.splitlines()[-1] == said[0]
    assert f"{run}/" in said[0]
    assert run.exists() == (file > 1)  # without a recipe there is no run
    assert said[0].endswith(f"cannot be written: {os.strerror(reason)}")
    assert [p.name for p in run.rglob(".*")] == []
    if not for_good and run.exists():
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["status"], f"error: {summary['error']}") == ("failed", said[0])
    for file_there in run.glob("checkpoint*.pt"):
        assert checkpoint.load(file_there, torch.device("cpu")).history


def test_every_file_of_a_training_fails_in_turn(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TINY)
    for number in range(1, FILES + 1):
        trained_on_a_bad_disk(
            recipe,
            tmp_path / f"run{number}",
            moment=MOMENTS[number % 4],
            file=number,
            for_good=number % 2 == 0,
            reason=REASONS[number % 5],
        )


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TINY)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        disk.fails_at, disk.for_good, disk.reason = ("made", FILES + 1), True, errno.ENOSPC
        code, _, err = train(recipe, tmp_path / "run")
    assert code == 0, err
    assert "WARNING" in err
    assert "report.html: not written" in err
    assert not (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_whose_disk_failed_anywhere_ends_as_if_it_never_had(
    moment: str, for_good: bool, tmp_path: Path
) -> None:
    recipe, good = write_recipe(tmp_path, TINY), tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        assert train(recipe, good)[0] == 0
    assert set(disk.count.values()) == {FILES + 1}  # and a page, without which a run is finished
    for number in range(1, FILES + 1):
        run = tmp_path / f"run{number}"
        trained_on_a_bad_disk(
            recipe, run, moment=moment, file=number, for_good=for_good, reason=errno.ENOSPC
        )
        code, _, err = train(recipe, run, *(["--resume"] if run.exists() else []))
        assert code == 0, err
        assert differences(contents(good), contents(run)) == []
        assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in good.iterdir())

"""Runs that are asked to stop, at any moment: what they leave goes on as if they never had."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from qtool import pipeline
from qtool.runs.built import build
from qtool.stopping import Stopped, heeding_signals
from qtool.training.judging import Judge
from qtool.training.loop import Trainer
from tests import kit
from tests.kit import shell
from tests.runs.test_resume import (
    AT_SITES,
    BLENDED,
    LEARNED,
    RESTLESS,
    checkpoint,
    differences,
    metrics,
    write,
)

SMALL = {"data.train_samples": 48, "data.batch_size": 8, "training.epochs": 3}
STEPS = 6  # of an epoch


def small(changes: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's changes with few epochs of few steps."""
    training = changes["training"] | {"epochs": 3, "batch_norm_batches": 2}
    return changes | SMALL | {"training": training}


def stop_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: int) -> None:
    """Let a signal come inside the so many-th call of a function."""
    whole, calls = getattr(owner, name), []

    def asked(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return whole(*args, **kwargs)

    patch.setattr(owner, name, asked)


def stopped(path: Path, folder: Path, place: tuple[Any, str, int], number: int) -> None:
    """Train, or go on, until a signal comes at a place."""
    with pytest.MonkeyPatch.context() as patch, heeding_signals():
        stop_at(patch, *place, number)
        with pytest.raises(Stopped):
            pipeline.train(path, run_dir=folder, device="cpu", resume=folder.exists())


ANYWHERE: list[tuple[tuple[Any, str, int], tuple[int, int]]] = [
    # (where a signal comes, (epochs done, steps of the next one) in the checkpoint)
    ((Trainer, "_take_step", 1), (0, 1)),
    ((Trainer, "_take_step", 3), (0, 4)),
    ((Trainer, "_take_step", 2), (0, 6)),
    ((Judge, "validate", 1), (0, 6)),
    ((Trainer, "_take_step", 2), (1, 2)),
    ((Trainer, "_line_of_training", 1), (1, 6)),
    ((Trainer, "_take_step", 5), (2, 5)),
    ((build, "reestimate_batch_norm_on", 1), (2, 6)),
    ((Judge, "validate", 1), (2, 6)),  # once the model is finished
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [BLENDED, RESTLESS, LEARNED, AT_SITES],
    ids=["blend that freezes", "random rounding, dampening, freezing", "learned scales", "sites"],
)
def test_a_run_stopped_anywhere_ends_as_if_it_had_never_stopped(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ends_as_if_never_stopped(changes, ANYWHERE, tmp_path)


def test_a_run_stopped_twice_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    inside = ((Trainer, "_take_step", 4), (0, 4))
    at_the_end_of_one = ((Trainer, "_line_of_training", 2), (1, 6))
    ends_as_if_never_stopped(RESTLESS, [inside, at_the_end_of_one], tmp_path)


def ends_as_if_never_stopped(
    changes: dict[str, Any],
    stops: list[tuple[tuple[Any, str, int], tuple[int, int]]],
    place: Path,
) -> None:
    """Stop a run at some moments, go on each time, and compare it with one that did not stop."""
    path, folder, whole = write(place, small(changes)), place / "stopped", place / "whole"
    pipeline.train(path, run_dir=whole, device="cpu")
    for count, (moment, stands) in enumerate(stops):
        stopped(path, folder, moment, (signal.SIGTERM, signal.SIGHUP)[count % 2])
        state = checkpoint(folder)
        assert (len(state["history"]), state["inside"]["tally"]["steps"]) == stands
        assert json.loads((folder / "summary.json").read_text())["status"] == "running"
    pipeline.train(path, run_dir=folder, device="cpu", resume=True)
    assert differences(checkpoint(whole), checkpoint(folder)) == []
    assert metrics(whole) == metrics(folder)


def test_the_line_that_resumes_is_said_and_the_exit_code_is_the_signal_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, small(LEARNED))
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        folder = tmp_path / number.name
        with monkeypatch.context() as patch:
            stop_at(patch, Trainer, "_take_step", 2, number)
            argv = ["train", str(path), "--run-dir", str(folder), "--device", "cpu"]
            found, out, err = shell(*argv)
        assert (found, out) == (code, "")
        line = f"stopped; go on with: qtool train {folder}/recipe.yaml --run-dir {folder} --resume"
        assert err.splitlines()[-2:] == [line, f"ended by {number.name}"]
        assert {child.name for child in folder.iterdir()} == {
            "checkpoint.pt",
            "checkpoint.pt.sha256",
            "environment.json",
            "recipe.yaml",
            "summary.json",
        }


def test_a_run_that_stands_inside_an_epoch_is_converted_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = write(tmp_path, small(LEARNED)), tmp_path / "run"
    stopped(path, folder, (Trainer, "_take_step", STEPS + 3), signal.SIGTERM)
    pipeline.convert(folder, device="cpu")
    assert "trained for 1.5 of 3 epochs so far" in capsys.readouterr().err
    assert (folder / "integer.safetensors").is_file()


def test_an_interrupted_run_goes_on_after_its_last_whole_epoch(tmp_path: Path) -> None:
    path, folder = write(tmp_path, small(LEARNED)), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, heeding_signals():
        stop_at(patch, Trainer, "_take_step", STEPS + 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as ended:
            pipeline.train(path, run_dir=folder, device="cpu")
    assert not isinstance(ended.value, Stopped)
    state = checkpoint(folder)
    assert ("inside" in state, len(state["history"])) == (False, 1)
    assert len(kit.metrics(folder)) == 1

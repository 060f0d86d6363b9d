"""Every key of `training` that may be left out, under torchrun: stopped, and gone on with."""

import os
import signal
from pathlib import Path

import pytest

from qtool import pipeline
from tests.kit import metrics as lines
from tests.kit import write_recipe
from tests.runs.test_resume import LEARNED, checkpoint, differences, metrics
from tests.runs.test_training_keys import HELD, KEYS, best
from tests.training.test_step_aids import AIDS
from tests.world.test_torchrun import GOING, inside_an_epoch, started, trained
from tests.world.torchrun import Training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc"),
]
__all__ = ["started"]  # a fixture


def test_two_processes_stop_and_go_on_and_do_what_one_does(
    tmp_path: Path, started: list[Training]
) -> None:
    # of three epochs two are no better, and so training ends after the third of four
    keys = KEYS | {"early_stopping": {"patience": 2, "min_delta": 1.0}}
    path = write_recipe(tmp_path, GOING | HELD | {"training": LEARNED["training"] | keys})
    one, whole, stopped = (tmp_path / name for name in ("one", "whole", "stopped"))
    assert trained(started, path, whole)[0] == 0

    started.append(training := Training(path, stopped))
    inside_an_epoch(training, stopped)
    os.kill(training.process.pid, signal.SIGTERM)
    code, said = training.end()
    assert code != 0
    assert len(metrics(stopped)) < 3
    code, said = trained(started, path, stopped, "--resume")
    assert code == 0, said
    assert differences(checkpoint(whole), checkpoint(stopped)) == []
    assert differences(best(whole), best(stopped)) == []
    assert metrics(whole) == metrics(stopped)

    pipeline.train(path, run_dir=one, device="cpu")
    assert len(lines(one)) == len(lines(whole)) == 3
    first = [lines(run)[0] for run in (one, whole)]
    for figure in ("train_loss", "holdout_loss"):
        assert first[1][figure] == pytest.approx(first[0][figure], rel=1e-2)
    assert checkpoint(one)["average"].keys() == checkpoint(whole)["average"].keys()


def test_two_processes_take_steps_with_aids_as_one_does(
    tmp_path: Path, started: list[Training]
) -> None:
    slowly = {"transition_rate": AIDS["transition_rate"] | {"start": 0.01}}
    keys = LEARNED["training"] | AIDS | slowly
    path = write_recipe(tmp_path, GOING | HELD | {"training": keys})
    one, two = tmp_path / "one", tmp_path / "two"
    code, said = trained(started, path, two)
    assert code == 0, said
    pipeline.train(path, run_dir=one, device="cpu")
    first = [lines(run)[0] for run in (one, two)]
    # a few codes more or less change, as sums of two processes have other last bits
    near = {"train_loss": 1e-2, "holdout_loss": 1e-2, "transition_rate": 0.1}
    for figure, share in near.items():
        assert first[1][figure] == pytest.approx(first[0][figure], rel=share)

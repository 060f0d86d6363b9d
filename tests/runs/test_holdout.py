"""Runs whose epochs are judged by training images that are held out."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qtool import pipeline
from qtool.quantizers.control import without_blends
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.training.judging import Judge
from tests.kit import metrics as lines
from tests.kit import refused, shell, write_recipe
from tests.runs.test_resume import checkpoint, differences, metrics
from tests.runs.test_stops import stopped

HELD: dict[str, Any] = {
    "data.batch_size": 8,
    "data.holdout": 0.25,
    "data.augment": False,
    "quantization.weights": {
        "bits": 4,
        "range": "absmax",
        "blend": {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 1.0]},
    },
    "training.epochs": 3,
}


def write(folder: Path, **more: object) -> Path:
    return write_recipe(folder, HELD | more)


def test_the_validation_set_judges_the_last_epoch_only(tmp_path: Path) -> None:
    code, _, said = shell("train", str(write(tmp_path)), "--run-dir", str(tmp_path / "run"))
    found = lines(tmp_path / "run")

    assert code == 0
    for line in found[:-1]:
        assert line["validation_loss"] is None
        assert line["validation_accuracy"] is None
        assert "blended_validation_accuracy" not in line
    assert found[-1]["validation_accuracy"] == found[-1]["blended_validation_accuracy"]
    assert all({"holdout_loss", "holdout_accuracy"} <= set(line) for line in found)
    of_epochs = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert ["hold-out" in line for line in of_epochs] == [True] * 3
    assert ["validation" in line for line in of_epochs] == [False, False, True]

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for figure in ("holdout_loss", "holdout_accuracy", "validation_accuracy"):
        assert summary[figure] == found[-1][figure]


def test_the_figures_are_those_of_the_images_held_out(tmp_path: Path) -> None:
    path, folder = write(tmp_path), RunFolder(tmp_path / "run")
    pipeline.train(path, run_dir=folder.path, device="cpu")
    run = Run.open(folder.path, torch.device("cpu"))
    model, held = run.model.eval(), run.data.holdout
    assert held is not None
    images, labels = (torch.cat(parts) for parts in zip(*held.batches(0), strict=True))
    with torch.no_grad(), without_blends(model):
        logits = model(images)

    last = lines(folder.path)[-1]
    assert last["holdout_accuracy"] == np.mean((logits.argmax(1) == labels).numpy())
    assert last["holdout_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert len(labels) == 16


@pytest.mark.parametrize("call", [1, 3])
def test_a_run_stopped_while_it_is_judged_ends_as_if_it_had_not(tmp_path: Path, call: int) -> None:
    path = write(tmp_path)
    whole, part = tmp_path / "whole", tmp_path / "part"
    pipeline.train(path, run_dir=whole, device="cpu")
    stopped(path, part, (Judge, "after", call), signal.SIGTERM)
    pipeline.train(path, run_dir=part, device="cpu", resume=True)

    assert differences(checkpoint(whole), checkpoint(part)) == []
    assert metrics(whole) == metrics(part)


@pytest.mark.parametrize("share", ["1", "-0.1", ".nan"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str) -> None:
    path = write(tmp_path)
    said = refused(tmp_path, "train", str(path), "--set", f"data.holdout={share}")
    assert "data.holdout" in said

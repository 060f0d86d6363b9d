"""Numbers go wrong in many ways; each ends with its name, a place and a moment, none "finished"."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtool import pipeline
from qtool.files.checksums import NewestAndPrevious
from qtool.runs.kept import checkpoint
from tests.kit import metrics, shell, write_recipe

CPU = torch.device("cpu")
EPOCHS = "training.epochs"
RATE = "training.learning_rate"
DAMPING = "quantization.weights.dampening"
INPUTS, WEIGHTS = "quantization.activations.range", "quantization.weights.range"
DECAYING = {"training.optimizer": {"name": "sgd", "weight_decay": 50.0, "momentum": 0.0}}
MOMENT = {"name": "piecewise", "values": [0.0, 5.0, 1.0], "at": [0.501, 0.502]}


def fixed(scale: float) -> dict[str, Any]:
    return {"name": "fixed", "scale": scale}


RECIPES: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "a learning rate of 1e10": (
        {RATE: 1e10},
        1,
        ["in epoch 1, step 2, more than a million times the 2.31 that it began", "conv1", RATE],
    ),
    "a learning rate of 1e10, adaptive": (
        {RATE: 1e10, "training.optimizer": "adamw"},
        1,
        ["in epoch 1, step 2, more than a million times", "fc1", RATE],
    ),
    "a learning rate of 1e10 where scales follow": (
        {RATE: 1e10, EPOCHS: 3, WEIGHTS: "absmax", INPUTS: "ema_min_max"},
        1,
        ["in epoch 1, step 2, more than a million times", "conv1"],
    ),
    "a learning rate that leaves float32": ({RATE: 1e39}, 2, [RATE, "becomes 1e+39; float32"]),
    "weights that all saturate": (
        {WEIGHTS: fixed(1e-6)},
        2,
        [
            "conv1.weight_quantizer: range fixed(scale=1e-06) saturates every value",
            "scale of 0.029",
        ],
    ),
    "weights that are all 0": (
        {WEIGHTS: fixed(1e3)},
        2,
        ["conv1.weight_quantizer: range fixed(scale=1000.0) makes every value 0", "scale of 0.029"],
    ),
    "inputs that all saturate": (
        {INPUTS: fixed(1e-6)},
        2,
        ["conv1.input_quantizer: range fixed(scale=1e-06) saturates every value"],
    ),
    "inputs that are all 0": (
        {INPUTS: fixed(1e3)},
        2,
        ["conv1.input_quantizer: range fixed(scale=1000.0) makes every value 0"],
    ),
    "a scale too small for float32": ({INPUTS: fixed(1e-40)}, 2, [f"{INPUTS}.scale: 1e-40"]),
    "a scale too large for float32": ({WEIGHTS: fixed(1e39)}, 2, [f"{WEIGHTS}.scale: 1e+39"]),
    "decay that leaves nothing of the weights": (
        {**DECAYING, EPOCHS: 8},
        1,
        ["the same logits for every validation image after epoch 8, step 16", "conv2.input_quant"],
    ),
    "a decay that is not finite": (
        {"training.optimizer": {"name": "sgd", "weight_decay": float("inf")}},
        2,
        ["training.optimizer.weight_decay: inf is not a finite number"],
    ),
    "dampening that overflows gradients": (
        {DAMPING: 1e30},
        1,
        ["gradients are no longer finite in epoch 1, step 1", "that of fc3.weight, which reaches"],
    ),
    "dampening that leaves float32": ({DAMPING: 1e39}, 2, [f"{DAMPING}: its value becomes 1e+39"]),
    "alpha beyond 1 for a moment": (
        {"quantization.weights.blend": MOMENT, WEIGHTS: "absmax"},
        2,
        ["quantization.weights.blend: alpha must stay within 0 and 1"],
    ),
    "a sharpness that leaves float32": (
        {"quantization.weights.estimator": {"name": "hyperbolic_tangent", "sharpness": 1e39}},
        2,
        ["quantization.weights.estimator.sharpness: 1e+39 is too large"],
    ),
    "a margin that leaves float32": (
        {"training.loss": {"name": "multiclass_hinge", "margin": 1e39}},
        2,
        ["training.loss.margin: 1e+39 is too large"],
    ),
}


def said_by(folder: Path, changes: dict[str, Any], code: int) -> str:
    """Train a recipe that fails; return what it says. What is left of it is not finished."""
    path = write_recipe(folder, changes)
    ended, out, err = shell("train", str(path), "--run-dir", str(folder / "run"), "--device", "cpu")
    assert (ended, out) == (code, ""), err
    assert "Traceback" not in err
    message = err[err.index("error: ") :]
    summary = folder / "run" / "summary.json"
    assert summary.exists() == (code == 1)
    if code == 1:
        said = json.loads(summary.read_text())
        assert said["status"] == "failed"
        assert message.strip() == f"error: {said['error']}"
    return message


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_fails_by_name(kind: str, tmp_path: Path) -> None:
    changes, code, words = RECIPES[kind]
    message = said_by(tmp_path, changes, code)
    assert [word for word in words if word not in message] == [], message


ESTIMATORS: dict[str, tuple[str, int, list[str]]] = {
    "nan everywhere": ("return grad * float('nan')", 2, ["my.py:1: own returned nan at u = -3"]),
    "whole numbers": ("return grad.long()", 2, ["own returned torch.int64; u is torch.float32"]),
    "another shape": ("return grad.sum()", 2, ["own returned the shape []"]),
    "nan in training": (
        "return grad / (1 - (u.numel() > 24))",
        1,
        ["in epoch 1, step 1", "is that of fc3.weight, which holds", "estimator is my.py:own"],
    ),
}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_users_estimator_fails_by_name(kind: str, tmp_path: Path) -> None:
    body, code, words = ESTIMATORS[kind]
    (tmp_path / "my.py").write_text(f"def own(grad, u, low, high): {body}")
    changes = {"quantization.weights.estimator": "my.py:own"}
    message = said_by(tmp_path, changes, code)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("labels", "pixels", "said"),
    [
        ([-1, 0], 255, "y_train: runs from -1 to 0; classes count from 0"),
        ([0, 1], 0, "std is [0.0], and images are divided by it"),
        ([], 255, "x_train: has shape [0, 8, 8]; there is no image in it"),
    ],
    ids=["a label of -1", "images of one value", "no images"],
)
def test_data_that_cannot_be_trained_on_is_named(
    labels: list[int], pixels: int, said: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, pixels + 1, (len(labels), 8, 8), dtype=np.uint8)
    given = {"x_train": images, "y_train": np.array(labels, dtype=np.int64)}
    tested = {"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": np.arange(2)}
    np.savez(tmp_path / "d.npz", **given, **tested)
    data = {"name": "arrays", "file": "d.npz", "root": str(tmp_path), "batch_size": 2}
    assert said in said_by(tmp_path, {"data": data}, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, of which one is done."""
    folder = tmp_path_factory.mktemp("runs")
    rate = {"name": "piecewise", "values": [0.01, 1e10], "at": [0.5]}
    path = write_recipe(folder, {EPOCHS: 2, RATE: rate})
    ended = shell("train", str(path), "--run-dir", str(folder / "run"), "--device", "cpu")
    assert ended[0] == 1
    assert "in epoch 2, step 2" in ended[2]
    return folder / "run"


def test_what_was_there_before_a_failure_stays_and_can_be_gone_on_with(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("failed", 1)
    assert [line["epoch"] for line in metrics(trained)] == [1]
    kept = checkpoint.load(trained / "checkpoint.pt", CPU)
    assert len(kept.history) == 1
    assert all(t.isfinite().all() for t in kept.model.values() if torch.is_tensor(t))
    before = {p: p.read_bytes() for p in trained.iterdir() if p.name != "environment.json"}
    again = shell("train", str(trained / "recipe.yaml"), "--run-dir", str(trained), "--resume")
    assert again[0] == 1
    assert "going on after epoch 1" in again[2]
    assert re.search(r"the loss became \S+ in epoch 2, step 2, more than a million", again[2])
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv1.weight_quantizer.scale", 0.0),
        ("conv2.input_quantizer.scale", 1e-40),
        ("fc1.weight_quantizer.scale", float("nan")),
        ("fc2.input_quantizer.scale", float("inf")),
        ("fc2.weight", float("inf")),
        ("fc3.bias", float("nan")),
    ],
)
def test_a_number_planted_in_a_checkpoint_is_named(
    name: str, value: float, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in trained.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    data = torch.load(run / "checkpoint.pt", weights_only=True)
    data["model"][name].reshape(-1)[0] = value
    NewestAndPrevious(run / "checkpoint.pt").write(lambda path: torch.save(data, path))
    (run / "checkpoint.previous.pt").unlink()
    for argv in (["train", str(run / "recipe.yaml"), "--resume", "--run-dir"], ["convert"]):
        ended, out, err = shell(*argv, str(run), "--device", "cpu")
        assert (ended, out) == (2, ""), err
        assert f"{name} " in err
        assert "Traceback" not in err


def test_weights_of_a_file_that_are_not_finite_are_named(trained: Path, tmp_path: Path) -> None:
    data = torch.load(trained / "checkpoint.pt", weights_only=True)
    data["model"]["conv2.weight"][0, 0, 0, 0] = float("inf")
    torch.save(data, tmp_path / "weights.pt")
    message = said_by(tmp_path, {"model.weights": str(tmp_path / "weights.pt")}, 2)
    assert "has values that are not finite, in conv2.weight" in message


def test_an_error_of_another_kind_leaves_a_failed_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: object, **keys: object) -> None:
        raise ZeroDivisionError("of the optimizer")

    monkeypatch.setattr(torch.optim.SGD, "step", breaks)
    with pytest.raises(ZeroDivisionError):
        pipeline.train(write_recipe(tmp_path), run_dir=tmp_path / "run", device="cpu")
    said = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (said["status"], said["error"]) == ("failed", "ZeroDivisionError: of the optimizer")

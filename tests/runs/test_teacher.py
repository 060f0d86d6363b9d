"""A run with a teacher, from the recipe to the files: what it keeps, and what it refuses."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtool import pipeline
from tests.kit import metrics, refused, shell, write_recipe
from tests.runs.test_resume import LEARNED, checkpoint, differences, end_in_the_middle, start
from tests.runs.test_resume import metrics as untimed

SHARE = 0.4
KL = {"loss": "kl", "temperature": 2.0, "share": SHARE}
FEATURES = {"loss": "features", "share": SHARE}
OWN = """
from torch import nn


def net(num_classes, channels=1):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights of a float LeNet-5."""
    folder = tmp_path_factory.mktemp("float")
    path = write_recipe(folder, {"quantization": None})
    pipeline.train(path, run_dir=folder / "run", device="cpu")
    return folder / "run" / "model.safetensors"


def recipe(folder: Path, weights: Path | str, how: dict[str, Any], **more: Any) -> Path:
    """Write a recipe that begins with weights, and follows the network that they are of."""
    changes = {"model.weights": str(weights), "training.distillation": how, "training.epochs": 2}
    return write_recipe(folder, changes | more)


@pytest.mark.parametrize("how", [KL, FEATURES], ids=["kl", "features"])
def test_metrics_tell_the_label_s_loss_and_the_teacher_s_of_which_the_training_s_is_made(
    how: dict[str, Any], floats: Path, tmp_path: Path
) -> None:
    path, run, without = recipe(tmp_path, floats, how), tmp_path / "run", tmp_path / "without"
    pipeline.train(path, run_dir=run, device="cpu")
    pipeline.train(path, assignments=["training.distillation=null"], run_dir=without, device="cpu")
    for line in metrics(run):
        mix = (1 - SHARE) * line["label_loss"] + SHARE * line["distillation_loss"]
        assert line["train_loss"] == pytest.approx(mix, rel=1e-5)
        assert list(line)[-2:] == ["label_loss", "distillation_loss"]
    assert metrics(run)[0]["train_loss"] != metrics(without)[0]["train_loss"]
    assert "label_loss" not in metrics(without)[0]
    state, plain = (
        torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (run, without)
    )
    assert state.keys() == plain.keys()
    assert state["model"].keys() == plain["model"].keys()
    kept = [json.loads((f / "environment.json").read_text()) for f in (run, without)]
    assert len(kept[0]["teacher"]) == 64
    assert "teacher" not in kept[1]


def test_random_numbers_do_not_depend_on_the_teacher(floats: Path, tmp_path: Path) -> None:
    """With a share that no float32 can tell from 0 the run is the one without a teacher."""
    how = {"loss": "features", "share": 1e-300}
    rounding = {"quantization.weights.rounding": "stochastic_rounding"}
    path = recipe(tmp_path, floats, how, **rounding)
    pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    without = ["training.distillation=null"]
    pipeline.train(path, assignments=without, run_dir=tmp_path / "without", device="cpu")
    one, two = (checkpoint(tmp_path / name) for name in ("run", "without"))
    assert differences(one["model"], two["model"]) == []
    assert differences(one["random"], two["random"]) == []


def test_a_run_goes_on_with_its_very_teacher_only_and_converts_without_it(
    floats: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "teacher.safetensors"
    shutil.copy(floats, weights)
    teacher = {"name": "lenet5", "weights": str(weights)}
    path = recipe(tmp_path, "none", KL, **{"training.teacher": teacher})
    run = tmp_path / "run"
    argv = ["train", str(path), "--run-dir", str(run), "--device", "cpu"]
    assert shell(*argv)[0] == 0
    longer = ["--set", "training.epochs=3", "--resume"]
    other = write_recipe(tmp_path / "run", {"quantization": None, "seed": 7})
    pipeline.train(other, run_dir=tmp_path / "other", device="cpu")
    shutil.copy(tmp_path / "other" / "model.safetensors", weights)
    assert refused(tmp_path, *argv, *longer) == (
        f"error: {run}: holds a run with another teacher (the SHA-256 of its weights is another); "
        "put back the file that it began with, or choose another --run-dir"
    )
    weights.unlink()
    assert "teacher.safetensors: no such file; training.teacher.weights" in refused(
        tmp_path, *argv, *longer
    )
    assert shell("convert", str(run))[0] == 0
    shutil.copy(floats, weights)
    assert shell(*argv, *longer)[0] == 0
    assert len(metrics(run)) == 3


def test_a_network_of_one_s_own_teaches_and_is_not_needed_to_convert(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    model = {"name": "own.py:net", "channels": 1}
    path = write_recipe(tmp_path, {"model": model, "quantization": None})
    pipeline.train(path, run_dir=tmp_path / "float", device="cpu")
    teacher = model | {"weights": "float/model.safetensors"}
    changes = {"training.teacher": teacher, "training.distillation": {"share": 0.7}}
    path, run = write_recipe(tmp_path, changes), tmp_path / "run"
    pipeline.train(path, run_dir=run, device="cpu")
    assert metrics(run)[0]["distillation_loss"] > 0
    assert (run / "own.py").read_text() == OWN
    (tmp_path / "own.py").unlink()
    (run / "own.py").unlink()
    assert shell("convert", str(run))[0] == 0


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "no file": (
        {"training.teacher": {"name": "lenet5", "weights": "no.pt"}},
        "training.teacher: no.pt: no such file; training.teacher.weights names a file of weights",
    ),
    "another network": (
        {"training.teacher": {"name": "lenet5", "batch_norm": "fixed", "weights": "FLOATS"}},
        "does not fit the model",
    ),
    "other classes": (
        {
            "model.weights": "none",
            "data": {"name": "arrays", "file": "two.npz", "root": "FOLDER", "image_size": 16},
            "training.teacher": {"name": "lenet5", "weights": "FLOATS"},
        },
        "its head is for other classes than the 2 of the data, of which it can teach nothing; give "
        "weights that were trained on these",
    ),
    "other images": (
        {"training.teacher": {"name": "resnet18", "weights": "FLOATS"}},
        "training.teacher: resnet18 takes images of 3 channels, and the student's have 1; choose a "
        "network that takes the same images",
    ),
    "no block by name": (
        {
            "model": {"name": "resnet20"},
            "training.distillation": FEATURES,
            "training.teacher": {"name": "lenet5", "weights": "FLOATS"},
        },
        "features: the teacher has no block by the name of one of the network's (layer1.0, "
        "layer1.1, layer1.2, ...); choose kl, or a teacher of its kind",
    ),
    "other channels": (
        {
            "model": {"name": "mnist_convnet"},
            "training.distillation": FEATURES,
            "training.teacher": {"name": "lenet5", "weights": "FLOATS"},
        },
        "features: conv1 returns [32, 16, 16] for an image, and the teacher's [6, 16, 16]; their "
        "channels and sizes must agree: choose kl, or a teacher as wide as the network",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_teacher_that_cannot_teach_is_refused(name: str, floats: Path, tmp_path: Path) -> None:
    changes, why = OTHERS[name]
    images, labels = np.arange(8 * 256, dtype=np.uint8).reshape(8, 16, 16), [0, 1] * 4
    np.savez(tmp_path / "two.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    named = {"FLOATS": str(floats), "FOLDER": str(tmp_path)}
    made = {
        key: {k: named.get(str(v), v) for k, v in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in changes.items()
    }
    path = recipe(tmp_path, floats, KL, **made)
    assert why in refused(tmp_path, "train", str(path), "--run-dir", "run")


KILLED: dict[str, dict[str, Any]] = {
    "kl": {"training.distillation": KL},
    "features": {
        "training.distillation": FEATURES,
        "data.augment": ["default", {"name": "mixup", "alpha": 0.5}],
        "training.ema": 0.9,
        "training.gradient_accumulation": 2,
        "training.precision": "bfloat16",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_run_killed_twice_is_taught_as_one_that_never_stopped(
    name: str, floats: Path, tmp_path: Path
) -> None:
    more = LEARNED | {"model.weights": str(floats), "data.image_size": 16} | KILLED[name]
    path = write_recipe(tmp_path, more)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for after_epoch, wait, how in ((1, 0.03, signal.SIGINT), (3, 0.08, signal.SIGKILL)):
        end_in_the_middle(start(path, killed), after_epoch, wait, how)
    pipeline.train(path, run_dir=killed, device="cpu", resume=True)
    pipeline.train(path, run_dir=whole, device="cpu")
    assert differences(checkpoint(whole), checkpoint(killed)) == []
    assert untimed(whole) == untimed(killed)

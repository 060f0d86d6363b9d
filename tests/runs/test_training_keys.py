"""The keys of `training` that a recipe may leave out: each changes what it says, and goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qtool import pipeline
from qtool.models.weights import read_state_dict
from qtool.recipe.recipe import Recipe
from qtool.runs.equipment import note_on_average
from qtool.settings.section import check
from qtool.training.loop import Trainer
from tests.kit import metrics as lines
from tests.kit import recipe, refused, write_recipe
from tests.runs.test_resume import LEARNED, checkpoint
from tests.runs.test_stops import ends_as_if_never_stopped

KEYS: dict[str, Any] = {"clip_gradient": 0.5, "ema": 0.8, "freeze": ["conv2"]}


def test_a_run_with_every_key_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    changes = LEARNED | {"training": LEARNED["training"] | KEYS}
    stops = [((Trainer, "_take_step", 4), (0, 4)), ((Trainer, "_validate", 3), (2, 6))]
    ends_as_if_never_stopped(changes, stops, tmp_path)


def test_the_average_of_the_weights_is_what_every_file_but_the_checkpoint_s_model_holds(
    tmp_path: Path,
) -> None:
    changes = {"training.epochs": 2, "training.ema": 0.5, "data.train_samples": 128}
    path, run, plain = write_recipe(tmp_path, changes), tmp_path / "run", tmp_path / "plain"
    summary = pipeline.train(path, run_dir=run, device="cpu")
    pipeline.train(path, run_dir=plain, device="cpu", assignments=["training.ema=null"])
    state, other = checkpoint(run), checkpoint(plain)
    for name, value in other["model"].items():
        if not name.endswith("bias"):  # those of the plain run's network were rounded at the end
            assert torch.equal(value, state["model"][name]), name
    figures = [[line["train_loss"] for line in lines(folder)] for folder in (run, plain)]
    assert figures[0] == figures[1]
    written = load_file(run / "model.safetensors")
    assert all(torch.equal(value, state["average"][name]) for name, value in written.items())
    assert not torch.equal(written["conv1.weight"], state["model"]["conv1.weight"])
    weights = read_state_dict(run / "checkpoint.pt")
    assert torch.equal(weights["conv1.weight"], state["average"]["conv1.weight"])
    converted = pipeline.convert(run, device="cpu")
    assert converted.validation_accuracy_before == summary.validation_accuracy
    scales = load_file(run / "integer.safetensors")["conv2.weight_scale"]
    assert torch.equal(scales, state["average"]["conv2.weight_quantizer.scale"].flatten())
    shown = pipeline.inspect(run).to_json()["layers"]
    low, high = scales.min(), scales.max()
    said = next(layer["weight scale"] for layer in shown if layer["layer"] == "conv2")
    assert f"{low:.3g}" in said
    assert f"{high:.3g}" in said


def test_an_average_that_has_not_forgotten_its_start_is_told_of() -> None:
    for decay, steps, told in (
        (0.9, 2, "at the end 81% of the average"),
        (0.9, 50, ""),
        (None, 2, ""),
    ):
        note = note_on_average(check(Recipe, recipe({"training.ema": decay}), "r"), steps)
        assert told in note
        assert bool(told) == bool(note)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.clip_gradient": 0.0}, "training.clip_gradient: 0.0 is not more than 0.0"),
        (
            {"training.clip_gradient": 1.0, "training.gradient": "population"},
            "training.clip_gradient: expected gradients are taken as they are",
        ),
        (
            {"training.freeze": ["conv3", "fc*"]},
            "training.freeze: 'conv3' matches no module; did you mean conv2?",
        ),
        (
            {"training.freeze": ["*"]},
            "training.freeze: nothing of the network is left to train; leave a part out",
        ),
        (
            {"training.cuda_graph": True, "training.optimizer": "Adagrad"},
            "training.cuda_graph: Adagrad cannot be captured in a graph; leave it out",
        ),
        (
            {"training.optimizer": {"name": "Adagrad", "betas": [0.9, 0.9]}},
            "training.optimizer.betas: Adagrad has no parameter betas",
        ),
    ],
)
def test_what_keys_cannot_say_is_a_recipe_error(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    assert told in refused(tmp_path, "train", str(write_recipe(tmp_path, changes)))


@pytest.mark.slow
def test_an_optimizer_of_torch_trains_resumes_and_has_no_straight_through_form(
    tmp_path: Path,
) -> None:
    training = LEARNED["training"] | {"learning_rate": 1e-3, "optimizer": "Adafactor"}
    quantization = {"weights": {"bits": 4, "range": "he_uniform", "estimator": "sinusoidal"}}
    changes = LEARNED | {"training": training, "quantization": quantization}
    ends_as_if_never_stopped(changes, [((Trainer, "_take_step", 4), (0, 4))], tmp_path)
    message = refused(tmp_path, "convert", "whole", "--to", "straight_through")
    assert "training.optimizer: no straight-through form is known under Adafactor" in message

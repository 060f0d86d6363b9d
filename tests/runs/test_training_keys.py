"""The keys of `training` that a recipe may leave out: each changes what it says, and goes on."""

from pathlib import Path
from typing import Any

import pytest

from qtool.training.loop import Trainer
from tests.kit import refused, write_recipe
from tests.runs.test_resume import LEARNED
from tests.runs.test_stops import ends_as_if_never_stopped

KEYS: dict[str, Any] = {"clip_gradient": 0.5}


def test_a_run_with_every_key_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    changes = LEARNED | {"training": LEARNED["training"] | KEYS}
    stops = [((Trainer, "_take_step", 4), (0, 4)), ((Trainer, "_validate", 2), (1, 6))]
    ends_as_if_never_stopped(changes, stops, tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.clip_gradient": 0.0}, "training.clip_gradient: 0.0 is not more than 0.0"),
        (
            {"training.clip_gradient": 1.0, "training.gradient": "population"},
            "training.clip_gradient: expected gradients are taken as they are",
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


def test_an_optimizer_of_torch_trains_resumes_and_has_no_straight_through_form(
    tmp_path: Path,
) -> None:
    training = LEARNED["training"] | {"learning_rate": 1e-3, "optimizer": "Adafactor"}
    quantization = {"weights": {"bits": 4, "range": "he_uniform", "estimator": "sinusoidal"}}
    changes = LEARNED | {"training": training, "quantization": quantization}
    ends_as_if_never_stopped(changes, [((Trainer, "_take_step", 4), (0, 4))], tmp_path)
    message = refused(tmp_path, "convert", "whole", "--to", "straight_through")
    assert "training.optimizer: no straight-through form is known under Adafactor" in message

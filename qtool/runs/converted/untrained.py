"""A recipe's network with its given weights: quantized, calibrated and improved, never trained."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qtool.console import say
from qtool.data.loaders import Loaders
from qtool.evaluation import evaluate
from qtool.graph.exact import sha256_of_state
from qtool.models.architecture import Architecture
from qtool.post_training.improve import Improved, improve
from qtool.quantizers.control import set_progress
from qtool.recipe.recipe import Recipe
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.built.equipment import make_loss
from qtool.runs.converted.calibration_folder import with_calibration_images


@dataclass(frozen=True)
class Untrained:
    """A fake-quantized network that no one has trained.

    Attributes:
        source: SHA-256 of recipe and float network.
        float_accuracy: None where labels are no classes.
        improved: what was done to it.
    """

    model: nn.Module
    data: Loaders
    architecture: Architecture
    source: str
    float_accuracy: float | None
    improved: Improved


def untrained(
    recipe: Recipe,
    device: torch.device,
    access: Access,
    *,
    method: str,
    keep: Path | None = None,
    no_saturation: bool = False,
    images: Path | None = None,
) -> Untrained:
    """Return a recipe's network with its given weights, quantized without training.

    Args:
        recipe: whose network it is.
        device: to compute on.
        access: what the recipe may reach.
        method: of `qtool.post_training.methods`.
        keep: file in which a method that takes minutes keeps how far it is.
        no_saturation: round channels anew that could saturate on processors without VNNI.
        images: folder of unlabelled images that calibrate in the place of the training data's.

    Raises:
        DataError: If the folder holds no images, or some of those that judge.
    """
    data = build.make_data(recipe, device, access)
    if recipe.model.weights == "none":
        say("note: model.weights is none, so random weights are quantized")
    built = build.make_network(recipe, data)
    network = built.model.eval().to(device)
    score = evaluate(network, data.validation.batches(0), make_loss(recipe))
    identity = json.dumps(recipe.identity(trains=False), sort_keys=True)
    made_of = hashlib.sha256(
        (identity + sha256_of_state(network.state_dict())).encode()
    ).hexdigest()
    if images is not None:
        data = with_calibration_images(data, images, recipe, device)
    model = calibrated(recipe, network, data)
    improved = improve(
        model,
        build.calibration_images(recipe, data),
        method,
        seed=recipe.seed,
        keep=keep,
        saturation="avoid" if no_saturation else "allow",
    )
    return Untrained(model, data, built.architecture, made_of, score.accuracy, improved)


def calibrated(recipe: Recipe, network: nn.Module, data: Loaders) -> nn.Module:
    """Return a network as a recipe has it, its ranges set, and nothing improved.

    Args:
        recipe: what is quantized, and how.
        network: in float, with its weights, in evaluation mode.
        data: of the recipe.
    """
    model = build.prepare_network(recipe, network, data.first_images, trains=False)
    build.calibrate_on(model, recipe, data)
    set_progress(model, 1.0)
    return model

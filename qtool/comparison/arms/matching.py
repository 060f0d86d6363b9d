"""How fast the arms of a comparison move their weights, and arms that do so equally fast.

Under SGD a weight with a gradient estimator is one with straight_through at its learning rate times
alpha, the harmonic mean of the estimator's derivative over a bin. A blended weight gets its
gradient times 1 - alpha of the blend; with straight_through beside the blend, all of it. So arms
that share a learning rate need not share what matters of it: its integral over training, as far as
it reaches the weights.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171, for alpha of an estimator.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch

from qtool.comparison.arms.compared import ComparedArm
from qtool.errors import InputError
from qtool.quantizers.layers import plain_type
from qtool.recipe.places import at
from qtool.recipe.recipe import Recipe
from qtool.runs.built import build
from qtool.settings.choices import blend_schedule, rate_schedule
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.weights import WeightMap
from qtool.training.optimizers import OPTIMIZERS

OPTION = "--match alpha"
MOMENTS = 2000  # of training, at which schedules are looked at: the middles of as many parts
SECTION = "quantization.weights"
PASSES_ALL = "straight_through"


class NoAlphaError(InputError):
    """An arm has weights that theory names no alpha of."""


@dataclass(frozen=True)
class LayerRate:
    """How fast a layer's latent weights move.

    Attributes:
        layer: its name.
        place: section of the recipe that says how it is quantized.
        settings: what stands there, with what it inherits.
        alpha: share of the integrated learning rate that it moves by, `learning_rate_scale` apart;
            None where theory names none.
        why_not: why there is none, "" where there is one.
    """

    layer: str
    place: str
    settings: WeightQuantization
    alpha: float | None
    why_not: str


def matched(arm: ComparedArm) -> ComparedArm:
    """Return the arm with `learning_rate_scale` divided by alpha, for each of its layers.

    Then all arms move their weights as straight_through would at the recipe's learning rate.

    Raises:
        InputError: If the optimizer is none of SGD's family, no weight is quantized, or one of them
            has no alpha; names what.
    """
    recipe = arm.recipe(arm.base.recipe.seed)
    optimizer = recipe.training.optimizer.name
    if OPTIMIZERS.facts(optimizer).adaptive:
        why = f"{optimizer} divides gradients by their size, so that alpha plays no part"
        raise InputError(f"{OPTION}: {arm.name}: {why}; choose sgd")
    layers = list(layer_rates(recipe))
    if not layers:
        raise InputError(f"{OPTION}: {arm.name}: no weights are quantized, so there is no alpha")
    changes: dict[str, object] = {}
    for each in layers:
        if not each.alpha:
            what = each.settings.estimator or each.settings.blend
            why = each.why_not or "it passes no gradient at all"
            raise NoAlphaError(
                f"{OPTION}: {arm.name}: {each.layer} has no alpha with {what}: {why}"
            )
        scale = each.settings.learning_rate_scale / each.alpha
        changes[f"{each.place}.learning_rate_scale"] = scale
    if all(each.alpha == 1 for each in layers):  # and so its trials are those of the recipe
        return arm
    return arm.changed(changes, OPTION)


def integrated_rate(recipe: Recipe) -> float | None:
    """Return the mean over training and layers of the rate at which weights move under SGD.

    It is the learning rate over 1 - momentum (what one gradient moves a weight by in all) times
    `learning_rate_scale` and what an estimator or a blend lets through; straight_through lets
    through all. None under Adam, where no weights are quantized, and where an estimator has no
    alpha.
    """
    optimizer = recipe.training.optimizer
    if OPTIMIZERS.facts(optimizer.name).adaptive:
        return None
    momentum = OPTIMIZERS.values(optimizer.name, optimizer.params).get("momentum", 0.0)
    rate = fmean(_rates(recipe)) / (1 - float(momentum) if isinstance(momentum, int | float) else 1)
    layers = [(each.alpha, each.settings.learning_rate_scale) for each in layer_rates(recipe)]
    known = [alpha * scale for alpha, scale in layers if alpha is not None]
    return rate * fmean(known) if known and len(known) == len(layers) else None


def layer_rates(recipe: Recipe) -> Iterator[LayerRate]:
    """Yield how fast each layer with quantized weights moves, in the network's order."""
    with torch.device("meta"):
        network = build.make_network_without_data(recipe).model
    rates, data = _rates(recipe), recipe.as_dict()
    found: dict[str, tuple[float | None, str]] = {}
    for name, module in network.named_modules():
        settings, _, where = recipe.quantization.for_layer(name)
        if settings is None or not plain_type(module):
            continue
        own = f"quantization.{where}.weights"
        place = own if where != "quantization" and at(data, own) else SECTION
        if place not in found:
            found[place] = _alpha(settings, rates)
        yield LayerRate(name, place, settings, *found[place])


def _alpha(settings: WeightQuantization, rates: list[float]) -> tuple[float | None, str]:
    """Return the share of the learning rate that reaches a weight; or None, and why."""
    if settings.blend is not None and settings.estimator is not None:
        if settings.estimator.name == PASSES_ALL:
            return 1.0, ""
        return None, "it stands beside a blend, for which theory names none"
    if settings.blend is not None:
        alpha, total = blend_schedule(settings.blend)[0], sum(rates)
        passed = [rate * (1 - alpha(p)) for rate, p in zip(rates, _moments(), strict=True)]
        return (sum(passed) / total if total else None), "the learning rate is 0"
    weight_map = WeightMap(settings)
    if why := weight_map.outside(adaptive=False):
        return None, why
    alpha = weight_map.in_steps.alpha
    return (alpha, "") if math.isfinite(alpha) and alpha > 0 else (None, weight_map.in_steps.reason)


def _rates(recipe: Recipe) -> list[float]:
    """Return the learning rate at MOMENTS of training."""
    schedule = rate_schedule(recipe.training.learning_rate)
    return [schedule(progress) for progress in _moments()]


def _moments() -> list[float]:
    return [(k + 0.5) / MOMENTS for k in range(MOMENTS)]

"""A recipe with a custom estimator, rewritten as its straight-through equivalent.

What theory says of its weights, and the recipe that trains them by straight_through.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qtool.errors import InputError
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.saturation import widths_can_saturate
from qtool.problems import Problem, either, report
from qtool.quantizers.layers import plain_type
from qtool.recipe.places import at, put
from qtool.recipe.recipe import Recipe
from qtool.runs.built import build
from qtool.settings.section import check
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.weights import WeightMap
from qtool.training.optimizers import OPTIMIZERS

STRAIGHT_THROUGH = "straight_through"


@dataclass(frozen=True)
class Equivalent:
    """What theory says of a recipe's quantized weights.

    Attributes:
        recipe: with the custom estimator.
        maps: layer -> alpha and M of its weight.
        places: where the settings of weights stand, overrides.0 or quantization -> the same.
        adaptive: the optimizer is of Adam's family.
        outside: why the recipe lies outside the theorem's class, or "".
        notes: what keeps the equivalence from being exact.
    """

    recipe: Recipe
    maps: dict[str, WeightMap]
    places: dict[str, WeightMap]
    adaptive: bool
    outside: str
    notes: list[str]


def equivalent_of(recipe: Recipe, source: str) -> Equivalent:
    """Return what theory says of a recipe.

    Raises:
        InputError: If there are no quantized weights, or some have no straight-through form
            whatever the estimator.
    """
    maps, places, found = dict[str, WeightMap](), dict[str, WeightMap](), list[Problem]()
    with torch.device("meta"):
        network = build.make_network_without_data(recipe).model
    for name, module in network.named_modules():
        if plain_type(module):
            settings, _, place = recipe.quantization.for_layer(name)
            if settings is not None:
                maps[name] = places[place] = WeightMap(settings)
                if wrong := why_not(settings):
                    key, why = wrong
                    found.append((f"quantization.{_owner(recipe, place, key)}{key}", why))
    found += _unfit(recipe)
    if found:
        raise report(source, list(dict.fromkeys(found)))
    if not maps:
        raise InputError(f"{source}: no weights are quantized; set quantization.weights")
    adaptive = OPTIMIZERS.facts(recipe.training.optimizer.name).adaptive
    judged = dict.fromkeys((m.estimator, m.outside(adaptive=adaptive)) for m in maps.values())
    outside = "; ".join(f"{name}: {why}" if len(judged) > 1 else why for name, why in judged if why)
    notes = _notes(recipe, maps, adaptive=adaptive)
    return Equivalent(recipe, maps, places, adaptive, outside, notes)


def _unfit(recipe: Recipe) -> list[Problem]:
    """Return the keys of training with which no straight-through form is known, and why."""
    found: list[Problem] = []
    optimizer = recipe.training.optimizer.name
    if not OPTIMIZERS.facts(optimizer).maps:
        known = [name for name in OPTIMIZERS.names() if OPTIMIZERS.facts(name).maps]
        why = f"no straight-through form is known under {optimizer}; choose {either(known)}"
        found.append(("training.optimizer", why))
    if recipe.training.ema is not None:
        why = "the average of what M gives is not what M gives of the average; leave it out"
        found.append(("training.ema", why))
    if recipe.training.cage is not None:
        found.append(("training.cage", "it pulls at w itself, which M moves; leave it out"))
    if recipe.training.transition_rate is not None:
        why = "the rate follows the codes, without the factor of the map; leave it out"
        found.append(("training.transition_rate", why))
    if recipe.training.distillation is not None and recipe.training.teacher is None:
        why = "the network of model.weights teaches, and another start is another teacher"
        found.append(("training.distillation", f"{why}; say training.teacher"))
    if recipe.training.early_stopping is not None:
        why = "runs that are the same would end after other epochs; leave it out"
        found.append(("training.early_stopping", why))
    return found


def _owner(recipe: Recipe, place: str, key: str) -> str:
    """Return the section that a weight's key stands in: an override's own, or what it inherits."""
    _, dot, index = place.partition(".")
    own = recipe.quantization.overrides[int(index)].weights if dot else None
    return f"{place}.weights." if own and key in own else "weights."


def why_not(settings: WeightQuantization) -> Problem | None:
    """Return the key that a weight has no straight-through form with, and why; or None."""
    if settings.blend is not None:
        why = "a blend passes gradients by its alpha, not by an estimator alone; leave it out"
        return "blend", why
    if settings.estimator is not None and ESTIMATORS.facts(settings.estimator.name).learns:
        return "estimator", "it learns its shape, which M goes by; choose hyperbolic_tangent"
    if settings.saturation == "avoid" and widths_can_saturate(settings.integer_grid, 255, [1, 2]):
        why = "avoid takes fewer steps where a layer's input has many, which M is not told; "
        return "saturation", f"{why}choose allow"
    if not settings.of_range.given or settings.of_range.interval:
        why = (
            f"{settings.range.name} moves in training, and the weights would have to move with it; "
            f"choose he_uniform, or {{name: fixed, scale: ...}}"
        )
        return "range", why
    return None


def _notes(recipe: Recipe, maps: Mapping[str, WeightMap], *, adaptive: bool) -> list[str]:
    """Return what keeps the equivalence from being exact."""
    notes: list[str] = []
    optimizer, clipped = recipe.training.optimizer, recipe.training.clip_gradient
    decay = optimizer.params.get("weight_decay", 0.0)
    if clipped is not None:
        notes.append("clip_gradient goes by the norm, which the estimator changes; leave it out")
    if decay and (not adaptive or optimizer.name == "adam"):
        notes.append(f"weight_decay {decay:g} pulls w and M(w) differently; set it to 0")
    if any(weight_map.settings.dampening is not None for weight_map in maps.values()):
        notes.append("dampening pulls at w itself, which M moves; leave it out")
    roundings = {weight_map.settings.rounding for weight_map in maps.values()} - {"half_to_even"}
    notes += [
        f"{rounding} looks at more of w than its code; choose half_to_even"
        for rounding in sorted(roundings)
    ]
    passing = {weight_map.estimator for weight_map in maps.values() if weight_map.passes_beyond}
    notes += [
        f"{name} passes gradients outside the grid, straight_through does not"
        for name in sorted(passing)
    ]
    return notes


def straight_through_recipe(equivalent: Equivalent, start: Path | None = None) -> Recipe:
    """Return the recipe with straight_through in place of the custom estimator, for every weight.

    Args:
        equivalent: of the recipe.
        start: file of the weights that it starts from; None leaves that as it is.
    """
    data, base = equivalent.recipe.as_dict(), equivalent.recipe.quantization.weights
    maps = {f"quantization.{place}.weights": m for place, m in equivalent.places.items()}
    if base is not None and _is_used(data, equivalent.places):
        maps["quantization.weights"] = WeightMap(base)
    changes: dict[str, object] = {}
    for place, weight_map in maps.items():
        if isinstance(settings := at(data, place), dict):
            changes[place] = settings | _changes(weight_map, adaptive=equivalent.adaptive)
    if start is not None:
        model = {"initialization": "default", "start": "random", "weights": str(start)}
        changes |= {f"model.{key}": value for key, value in model.items()}
    return check(Recipe, put(data, changes), "the straight-through recipe")


def _is_used(data: object, places: Iterable[str]) -> bool:
    """Tell whether a layer takes the section's own weights, or an override that changes none."""
    return any(not at(data, f"quantization.{place}.weights") for place in places)


def _changes(weight_map: WeightMap, *, adaptive: bool) -> dict[str, object]:
    """Return what differs in a weight's settings for straight_through."""
    changes: dict[str, object] = {"estimator": {"name": STRAIGHT_THROUGH}}
    if not adaptive:
        own = weight_map.settings.learning_rate_scale
        changes["learning_rate_scale"] = own * weight_map.in_steps.alpha
    return changes

"""The arms of a comparison of schedules: recipes that differ in how one number moves."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from qtool.comparison.question import chosen_seeds, rate_of, read_base, refuse_repeated, sections_of
from qtool.comparison.trials import Arm
from qtool.errors import InputError
from qtool.numerics.schedules import SCHEDULES
from qtool.problems import did_you_mean
from qtool.recipe.recipe import Recipe
from qtool.runs.build import AFTER_A_BLEND
from qtool.settings.section import check

USUAL_SHAPES = {
    "alpha": ["linear", "cubic", "cosine", "step"],
    "learning_rate": ["cosine", "linear", "step", "constant"],
}
USUAL_WINDOW = [0.0, 0.8]  # of alpha, where the recipe has no blend
STE = "straight_through"
SIDES = ("weights", "activations")


def schedule_arms(
    source: Path,
    shapes: list[str] | None,
    on: str,
    windows: list[list[float]] | None,
    seeds: int | list[int],
    assignments: list[str] | None,
) -> tuple[list[Arm], list[int]]:
    """Return one arm for each schedule, those of alpha after the straight-through one, and seeds.

    Args:
        source: the recipe.
        shapes: names of schedules; None takes the usual ones.
        on: alpha, or learning_rate.
        windows: shares of training within which the value moves; each shape has one arm for each.
            None leaves them to the recipe.
        seeds: how many, or which.
        assignments: changes of the recipe.

    Raises:
        InputError: If a schedule is unknown or named twice, or does not fit the recipe.
    """
    _, base = read_base(source, assignments)
    shapes = shapes or USUAL_SHAPES[on]
    for shape in shapes:
        if shape not in SCHEDULES:
            raise InputError(
                f"--schedules: unknown schedule {shape!r}{did_you_mean(shape, SCHEDULES.names())}"
            )
    refuse_repeated(shapes, "--schedules", "a schedule")
    resolved, chosen = base.as_dict(), chosen_seeds(base, seeds)
    changed: dict[str, Any] = {}
    if on == "alpha":
        if not any(sections_of(resolved, side) for side in SIDES):
            raise InputError(f"{source}: nothing is quantized, so there is no alpha")
        # what a blend gets by default, the straight-through arm gets too
        resolved["training"].setdefault("batch_norm_batches", AFTER_A_BLEND)
        changed[STE] = _with_alpha(resolved, None)
    change = _with_alpha if on == "alpha" else _with_rate_shape
    for shape in shapes:
        for window in (None,) if shape == "constant" else windows or (None,):
            at = "" if window is None else f"@{window[0]:g}-{window[1]:g}"
            if shape + at in changed:
                raise InputError(f"--windows: two of them are the same to six digits: {at[1:]}")
            changed[shape + at] = change(resolved, (shape, window))
    made = []
    for name, data in changed.items():
        where = f"{source} with {name}"
        made.append(Arm(name, [check(Recipe, data | {"seed": seed}, where) for seed in chosen]))
    return made, chosen


def _with_alpha(data: dict[str, Any], choice: tuple[str, list[float] | None] | None) -> Any:
    """Return a recipe with another schedule of alpha; without a choice the straight-through one.

    Every blend is changed, those of overrides too; a recipe that has none gets one for its weights
    or, where those are float, for its activations.
    """
    data = deepcopy(data)
    sides = [list(sections_of(data, side).values()) for side in SIDES]
    blended = [tensor for side in sides for tensor in side if tensor.get("blend")]
    for tensor in blended or next(side for side in sides if side):
        own = tensor.pop("blend", {"window": USUAL_WINDOW})
        own = {"name": own} if isinstance(own, str) else own
        tensor.pop("estimator", None)
        if choice is None:
            tensor["estimator"] = {"name": STE}
            continue
        common = {"start", "window"}
        if SCHEDULES.facts(choice[0]).rises:
            common.add("phases")
        tensor["blend"] = _moved(own, _only(own, common), *choice)
    return data


def _with_rate_shape(data: dict[str, Any], choice: tuple[str, list[float] | None]) -> Any:
    """Return a recipe whose learning rate moves by another schedule between the same ends.

    A rate that is constant in the recipe goes down to 0.
    """
    own = data["training"]["learning_rate"]
    last = own["values"][-1] if "values" in own else own.get("stop", 0.0)
    rate = {"warmup": own.get("warmup", 0.0)}
    if choice[0] == "constant":
        rate |= {"value": rate_of(own)}
    else:
        rate |= {"start": rate_of(own), "stop": last} | _only(own, {"window"})
    return data | {"training": data["training"] | {"learning_rate": _moved(own, rate, *choice)}}


def _only(schedule: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in schedule.items() if key in keys}


def _moved(
    own: dict[str, Any], common: dict[str, Any], shape: str, window: list[float] | None
) -> dict[str, Any]:
    """Return a schedule of a shape, and in another window where that is given.

    The recipe's `own` stays as it is where it has that shape; of others, `common` is carried over.
    """
    kept = own if own.get("name") == shape else common
    return {**kept, "name": shape} | ({} if window is None else {"window": window})

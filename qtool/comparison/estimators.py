"""The arms of a comparison of estimators: recipes that differ in whose gradient they take."""

import json
from pathlib import Path
from typing import Any

from qtool.comparison.question import chosen_seeds, read_base, refuse_repeated, sections_of
from qtool.comparison.trials import Arm
from qtool.console import say
from qtool.errors import InputError, RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.problems import did_you_mean
from qtool.recipe.file import check_recipe, override
from qtool.recipe.recipe import Recipe
from qtool.settings.user_estimators import is_users, load_estimator


def estimator_arms(
    source: Path,
    names: list[str] | None,
    on: str | None,
    seeds: int | list[int],
    assignments: list[str] | None,
) -> tuple[list[Arm], list[int], str]:
    """Return one arm for each estimator, the seeds, and the side whose estimators they are.

    Raises:
        InputError: If an estimator is unknown or named twice, or that side is float.
    """
    data, base = read_base(source, assignments)
    for name in names or []:
        refuse_unknown(name, source, "--estimators")
    refuse_repeated(names or [], "--estimators", "an estimator")
    side = on or _side_of(base, names or ESTIMATORS.names())
    refuse_float(data, side, source)
    chosen = chosen_seeds(base, seeds)
    arms = [
        Arm(name, [with_estimator(data, side, name, seed, source) for seed in chosen])
        for name in names or _fitting(data, side, source)
    ]
    return arms, chosen, side


def refuse_unknown(name: str, source: Path, option: str) -> None:
    """Check that an estimator is one of qtool's, or in a file beside the recipe `source`.

    Raises:
        InputError: If it is not; names the option that it was given by.
    """
    if is_users(name):
        load_estimator(name, source.parent)
    elif name not in ESTIMATORS:
        hint = did_you_mean(name, ESTIMATORS.names())
        raise InputError(f"{option}: unknown estimator {name!r}{hint}")


def _side_of(recipe: Recipe, names: list[str]) -> str:
    """Return whose estimators the arms are: activations for those of a ReLU, else weights."""
    quantized = recipe.quantization.activations is not None
    only = recipe.quantization.weights is None
    of_relus = all(ESTIMATORS.facts(name).serves_ceil for name in names)
    return "activations" if quantized and (only or of_relus) else "weights"


def _fitting(data: dict[str, Any], side: str, source: Path) -> list[str]:
    """Return qtool's own estimators that the recipe can have; say which it cannot."""
    fits, others = [], []
    for name in ESTIMATORS.names():
        try:
            with_estimator(data, side, name, 0, source)
        except RecipeError:
            others.append(name)
        else:
            fits.append(name)
    if others:
        say(f"left out, as they do not fit these {side}: {', '.join(others)}")
    return [name for name in fits if not is_users(name)]


def with_estimator(data: dict[str, Any], side: str, name: str, seed: int, source: Path) -> Recipe:
    """Return the recipe of one trial: every tensor of a side has the estimator, also of overrides.

    It takes the place of a blend. Where the recipe has it already, it keeps its parameters.
    """
    places = sections_of(data, side)
    base = places.get(f"quantization.{side}")
    usual = _own_estimator(base or {}, name) or name
    changes = [f"seed={seed}"]
    for key, section in places.items():
        if section is base or base is None or {"estimator", "blend"} & set(section):
            estimator = _own_estimator(section, name) or usual
            changes += [f"{key}.estimator={json.dumps(estimator)}", f"{key}.blend=null"]
    return check_recipe(override(data, changes), source, f" with {name}")


def _own_estimator(section: dict[str, Any], name: str) -> Any:
    """Return a section's estimator as it is written, if it is the one of that name."""
    own = section.get("estimator")
    return own if name == (own.get("name") if isinstance(own, dict) else own) else None


def refuse_float(data: dict[str, Any], side: str, source: Path) -> None:
    """Check that a side is quantized somewhere.

    Raises:
        InputError: If it is float, so that it has no estimator.
    """
    if not sections_of(data, side):
        raise InputError(f"{source}: quantization.{side} is float, so it has no estimator")

"""The arms of a comparison of estimators: recipes that differ in whose gradient they take."""

from collections.abc import Mapping, Sequence

from qtool.comparison.arms.compared import ComparedArm
from qtool.comparison.question import (
    Base,
    ComparisonRequest,
    Side,
    read_base,
    refuse_repeated,
    sections_of,
)
from qtool.console import say
from qtool.errors import InputError, RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.problems import did_you_mean
from qtool.recipe.places import put
from qtool.recipe.recipe import Recipe
from qtool.settings.user_estimators import load_estimator
from qtool.settings.user_parts import is_users


def estimator_arms(
    request: ComparisonRequest, names: list[str] | None, on: Side | None
) -> tuple[list[ComparedArm], Side]:
    """Return one arm for each estimator, and the side whose estimators they are.

    Args:
        request: of which recipe, and how often.
        names: of the estimators; None takes all of qtool's that fit.
        on: the side; None finds it by the recipe and the names.

    Raises:
        InputError: If an estimator is unknown or named twice, or that side is float.
    """
    base = read_base(request)
    for name in names or []:
        refuse_unknown(name, base, "--estimators")
    refuse_repeated(names or [], "--estimators", "an estimator")
    side = on or _side_of(base.recipe, names or ESTIMATORS.names())
    refuse_float(base, side)
    return [_arm(base, side, name) for name in names or _fitting(base, side)], side


def refuse_unknown(name: str, base: Base, option: str) -> None:
    """Check that an estimator is one of qtool's, or in a file beside the recipe.

    Raises:
        InputError: If it is not; names the option that it was given by.
    """
    if is_users(name):
        load_estimator(name, base.code)
    elif name not in ESTIMATORS:
        hint = did_you_mean(name, ESTIMATORS.names())
        raise InputError(f"{option}: unknown estimator {name!r}{hint}")


def refuse_float(base: Base, side: Side) -> None:
    """Check that a side is quantized somewhere.

    Raises:
        InputError: If it is float, so that it has no estimator.
    """
    if not sections_of(base.data, side):
        raise InputError(f"{base.source}: quantization.{side} is float, so it has no estimator")


def _side_of(recipe: Recipe, names: Sequence[str]) -> Side:
    """Return whose estimators the arms are: activations for those of a ReLU, else weights."""
    quantized = recipe.quantization.activations is not None
    only = recipe.quantization.weights is None
    of_relus = all(ESTIMATORS.facts(name).serves_ceil for name in names)
    return "activations" if quantized and (only or of_relus) else "weights"


def _fitting(base: Base, side: Side) -> list[str]:
    """Return qtool's own estimators that the recipe can have; say which it cannot."""
    fits, others = [], []
    for name in ESTIMATORS.names():
        try:
            with_estimator(base, side, name, 0)
        except RecipeError:
            others.append(name)
        else:
            fits.append(name)
    if others:
        say(f"left out, as they do not fit these {side}: {', '.join(others)}")
    return [name for name in fits if not is_users(name)]


def with_estimator(base: Base, side: Side, name: str, seed: int) -> Recipe:
    """Return the recipe of one trial.

    Raises:
        RecipeError: If the recipe cannot have the estimator.
    """
    return _arm(base, side, name).recipe(seed)


def _arm(base: Base, side: Side, name: str) -> ComparedArm:
    """Return an arm: every tensor of a side has the estimator, also of overrides.

    It takes the place of a blend. Where the recipe has it already, it keeps its parameters.
    """
    sections, shared = sections_of(base.data, side), f"quantization.{side}"
    usual = _own_estimator(sections.get(shared, {}), name) or name
    changes: dict[str, object] = {}
    for place, section in sections.items():
        if place == shared or shared not in sections or {"estimator", "blend"} & set(section):
            changes[f"{place}.estimator"] = _own_estimator(section, name) or usual
            changes[f"{place}.blend"] = None
    return ComparedArm(name, base, put(base.data, changes))


def _own_estimator(section: Mapping[str, object], name: str) -> object:
    """Return a section's estimator as it is written, if it is the one of that name."""
    own = section.get("estimator")
    return own if name == (own.get("name") if isinstance(own, dict) else own) else None

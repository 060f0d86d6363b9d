"""The arms of comparisons: recipes that differ in one thing only."""

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from qtool import assembly, equivalent_run, run_folder
from qtool.comparison.equivalence import (
    CUSTOM,
    JITTER,
    JITTER_FACTOR,
    MAPPED,
    NAIVE,
    Question,
    arm_name,
)
from qtool.comparison.trials import Arm
from qtool.console import say
from qtool.equivalent_run import Equivalent, equivalent_of
from qtool.errors import InputError, RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.relu_family import RELU_FAMILY
from qtool.quantizers.user_estimators import is_users, load_estimator
from qtool.recipe import Recipe
from qtool.recipe_file import check_recipe, override, read_recipe_file
from qtool.registry import did_you_mean
from qtool.sections import check

USUAL_FACTORS = (4, 2, 1, 0.5)  # on the recipe's learning rate


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
        _refuse_unknown(name, source, "--estimators")
    refuse_repeated(names or [], "--estimators", "an estimator")
    side = on or _side_of(base, names or ESTIMATORS.names())
    _refuse_float(data, side, source)
    chosen = chosen_seeds(base, seeds)
    arms = [
        Arm(name, [_with_estimator(data, side, name, seed, source) for seed in chosen])
        for name in names or _fitting(data, side, source)
    ]
    return arms, chosen, side


def refuse_repeated(names: list[str], option: str, what: str) -> None:
    """Check that no arm is named twice.

    Raises:
        InputError: If one is; names the option, and what the arms are.
    """
    if len(set(names)) < len(names):
        raise InputError(f"{option} {','.join(names)}: {what} is named twice")


def comparison_folder(output: Path | None, source: Path, kind: str) -> Path:
    """Return the folder of a comparison, which need not be there yet.

    Raises:
        InputError: If it cannot be made, or is a run's.
    """
    folder = output or Path("runs") / f"{source.stem}-{kind}"
    run_folder.refuse_unless_makeable(folder)
    if run_folder.is_run_folder(folder):
        raise InputError(f"{folder}: holds a run; choose another --output for the comparison")
    return folder


def read_base(source: Path, assignments: list[str] | None) -> tuple[dict[str, Any], Recipe]:
    """Return what the arms of a comparison share: the recipe's data, and the recipe."""
    data = override(read_recipe_file(source), assignments or [])
    recipe = check_recipe(data, source)
    assembly.check_against_network(recipe, str(source))
    return data, recipe


def chosen_seeds(recipe: Recipe, seeds: int | list[int]) -> list[int]:
    """Return the seeds; where only their number is given, from the recipe's own on."""
    return seeds if isinstance(seeds, list) else [recipe.seed + k for k in range(seeds)]


def _refuse_unknown(name: str, source: Path, option: str) -> None:
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
    """Return whose estimators the arms are: activations for the ReLU family, else weights."""
    family = {"identity", "straight_through", *RELU_FAMILY.names()}
    quantized = recipe.quantization.activations is not None
    only = recipe.quantization.weights is None
    return "activations" if quantized and (only or set(names) <= family) else "weights"


def _fitting(data: dict[str, Any], side: str, source: Path) -> list[str]:
    """Return qtool's own estimators that the recipe can have; say which it cannot."""
    fits, others = [], []
    for name in ESTIMATORS.names():
        try:
            _with_estimator(data, side, name, 0, source)
        except RecipeError:
            others.append(name)
        else:
            fits.append(name)
    if others:
        say(f"left out, as they do not fit these {side}: {', '.join(others)}")
    return [name for name in fits if not is_users(name)]


def _with_estimator(data: dict[str, Any], side: str, name: str, seed: int, source: Path) -> Recipe:
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


def sections_of(data: dict[str, Any], side: str) -> dict[str, dict[str, Any]]:
    """Return a recipe's sections on weights or activations by where they stand, overrides' last."""
    section = data.get("quantization") or {}
    places = {"quantization": section}
    for index, own in enumerate(section.get("overrides") or []):
        places[f"quantization.overrides.{index}"] = own
    return {f"{key}.{side}": place[side] for key, place in places.items() if place.get(side)}


def _own_estimator(section: dict[str, Any], name: str) -> Any:
    """Return a section's estimator as it is written, if it is the one of that name."""
    own = section.get("estimator")
    return own if name == (own.get("name") if isinstance(own, dict) else own) else None


def _refuse_float(data: dict[str, Any], side: str, source: Path) -> None:
    if not sections_of(data, side):
        raise InputError(f"{source}: quantization.{side} is float, so it has no estimator")


def equivalence(
    source: Path,
    name: str | None,
    rates: list[float] | None,
    seeds: int | list[int],
    assignments: list[str] | None,
) -> tuple[Equivalent, Question]:
    """Return what theory says of the recipe with the custom estimator, and what is asked of it.

    Raises:
        InputError: If it cannot be asked, or the learning rates are no learning rates.
    """
    data, recipe = read_base(source, assignments)
    if name is not None:
        _refuse_unknown(name, source, "--estimator")
        _refuse_float(data, "weights", source)
        recipe = _with_estimator(data, "weights", name, recipe.seed, source)
    own = rate_of(recipe.training.learning_rate.params)
    rates = rates or [factor * own for factor in USUAL_FACTORS]
    if not all(isfinite(rate) and rate > 0 for rate in rates) or own <= 0:
        raise InputError(f"{source}: a learning rate that starts at 0 cannot be scaled")
    if len({arm_name(rate, CUSTOM) for rate in rates}) < len(rates):
        raise InputError("--learning-rates: two of them are the same to six digits")
    theory = equivalent_of(recipe, str(source))
    for note in [theory.outside and f"outside the class: {theory.outside}", *theory.notes]:
        if note:
            say(f"note: {note}")
    chosen = chosen_seeds(recipe, seeds)
    return theory, Question(
        theory.maps, theory.adaptive, theory.outside, theory.notes, rates, chosen
    )


def equivalence_arms(
    theory: Equivalent, question: Question, folder: Path, source: Path
) -> list[Arm]:
    """Return every arm at every learning rate; the mapped ones' run folders are begun."""
    arms: dict[str, list[Recipe]] = {}
    for rate in question.rates:
        for seed in question.seeds:
            made = _arms_at(theory, question, rate, seed, folder, source)
            for arm in question.arms:
                arms.setdefault(arm_name(rate, arm), []).append(made[arm])
    return [Arm(name, recipes) for name, recipes in arms.items()]


def _arms_at(
    theory: Equivalent, question: Question, rate: float, seed: int, folder: Path, source: Path
) -> dict[str, Recipe]:
    jitter = _with_rate(theory.recipe, rate * JITTER_FACTOR, seed, source)
    theory = replace(theory, recipe=_with_rate(theory.recipe, rate, seed, source))
    made = {CUSTOM: theory.recipe, JITTER: jitter}
    if NAIVE in question.arms:  # straight_through and nothing else changed, whatever M is
        made[NAIVE] = equivalent_run.straight_through_recipe(replace(theory, adaptive=True))
    if MAPPED not in question.arms:
        return made
    if question.adaptive:
        made[MAPPED] = equivalent_run.straight_through_recipe(theory)
    else:
        place = folder / arm_name(rate, MAPPED) / f"seed-{seed}"
        made[MAPPED] = equivalent_run.straight_through_recipe(
            theory, (place / run_folder.INITIAL).resolve()
        )
        equivalent_run.write_start(theory, made[MAPPED], place)
    return made


def _with_rate(recipe: Recipe, rate: float, seed: int, source: Path) -> Recipe:
    """Return the recipe with another seed and learning rate; its whole schedule scales with it."""
    data: dict[str, Any] = recipe.as_dict() | {"seed": seed}
    chosen = data["training"]["learning_rate"]
    factor = rate / rate_of(chosen)
    if "values" in chosen:
        chosen["values"] = [factor * value for value in chosen["values"]]
    else:
        chosen["start" if "start" in chosen else "value"] = rate
        if "stop" in chosen:
            chosen["stop"] *= factor
    return check(Recipe, data, f"{source} at learning rate {rate:g}")


def rate_of(schedule: dict[str, Any]) -> float:
    """Return the learning rate that a schedule is known by: where it starts."""
    if "values" in schedule:
        return float(schedule["values"][0])
    return float(schedule.get("start", schedule.get("value", 0.0)))

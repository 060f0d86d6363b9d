"""The arms of a comparison with the straight-through equivalent, at every learning rate."""

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from qtool.comparison.equivalence import (
    CUSTOM,
    JITTER,
    JITTER_FACTOR,
    MAPPED,
    NAIVE,
    Question,
    arm_name,
)
from qtool.comparison.estimators import refuse_float, refuse_unknown, with_estimator
from qtool.comparison.question import chosen_seeds, rate_of, read_base
from qtool.comparison.trials import Arm
from qtool.console import say
from qtool.errors import InputError
from qtool.recipe.recipe import Recipe
from qtool.runs.folder import INITIAL
from qtool.settings.section import check
from qtool.straight_through.recipe import Equivalent, equivalent_of, straight_through_recipe
from qtool.straight_through.run import write_start

USUAL_FACTORS = (4, 2, 1, 0.5)  # on the recipe's learning rate


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
        refuse_unknown(name, source, "--estimator")
        refuse_float(data, "weights", source)
        recipe = with_estimator(data, "weights", name, recipe.seed, source)
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
        made[NAIVE] = straight_through_recipe(replace(theory, adaptive=True))
    if MAPPED not in question.arms:
        return made
    if question.adaptive:
        made[MAPPED] = straight_through_recipe(theory)
    else:
        place = folder / arm_name(rate, MAPPED) / f"seed-{seed}"
        made[MAPPED] = straight_through_recipe(theory, (place / INITIAL).resolve())
        write_start(theory, made[MAPPED], place)
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

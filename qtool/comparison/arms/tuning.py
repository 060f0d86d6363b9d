"""Hyperparameters of each arm, chosen before it is compared, with an equal budget for all.

Every arm is trained with every candidate, on one seed that no trial of the comparison has, and
judged by training images that are held out: neither the validation set nor a seed that judges the
arms has a say. Candidates lie in tuning/ARM/CANDIDATE beside the arms' folders, and are reused.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydantic import JsonValue

from qtool.comparison.arms.assigned import split_assignment, values_of
from qtool.comparison.arms.compared import ComparedArm
from qtool.comparison.arms.scaling import is_schedule, number_of, scaled, times
from qtool.comparison.execution.trials import ComparisonFolder, Outcome, Trial
from qtool.console import say
from qtool.errors import InputError
from qtool.problems import brief, shown
from qtool.recipe.early import early_problems
from qtool.recipe.places import at
from qtool.recipe.plain import with_values
from qtool.reports.fairness import Candidate

OPTION = "--tune"
FOLDER = "tuning"
USUAL_HOLDOUT = 0.1  # of the training images, where the recipe holds out none
TUNING_SEED = 100_000  # after the recipe's own: no comparison has as many
MOST_CANDIDATES = 1000  # of an arm
FACTOR = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?x")
NO_FACTOR = re.compile(r"-[0-9.]+([eE][-+]?[0-9]+)?x|0*\.?0+x")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class Choice:
    """One candidate of an arm.

    Attributes:
        name: as it is said on the command line, and its folder's.
        arm: with the candidate's values, but for what is held out.
        values: key -> value; of a schedule, where it starts.
        trial: that judges it.
    """

    name: str
    arm: ComparedArm
    values: dict[str, JsonValue]
    trial: Trial


@dataclass(frozen=True)
class Tuned:
    """What an arm was given for the comparison.

    Attributes:
        values: key of the recipe -> value; none where no candidate finished.
        at_edge: keys whose best value is the smallest or the largest of those tried.
    """

    values: dict[str, JsonValue]
    at_edge: list[str]


def grid_of(texts: Sequence[str]) -> dict[str, list[object]]:
    """Return key -> values of texts such as `learning_rate=0.3x,1x,3x`.

    Raises:
        InputError: If a text says none, or two of them are of one key.
    """
    grid: dict[str, list[object]] = {}
    for text in texts:
        key, values = split_assignment(text, OPTION, "KEY=a,b,c")
        if key in grid:
            raise InputError(f"{OPTION} {key}: stands there twice; give all values at once")
        grid[key] = values_of(values, f"{OPTION} {key}")
        for value in grid[key]:
            if isinstance(value, str) and NO_FACTOR.fullmatch(value):
                why = f"{value} is not a factor above 0, such as 0.3x"
                raise InputError(f"{OPTION} {key}: {why}")
        if len({repr(value) for value in grid[key]}) < len(grid[key]):
            raise InputError(f"{OPTION} {key}: a value stands there twice")
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > MOST_CANDIDATES:
        raise InputError(
            f"{OPTION}: {count:,} candidates for each arm, more than the "
            f"{MOST_CANDIDATES:,} that are tried"
        )
    return grid


def choices_of(
    arm: ComparedArm, grid: Mapping[str, Sequence[object]], folder: Path
) -> list[Choice]:
    """Return an arm's candidates, all of whose recipes are checked.

    Args:
        arm: as it is.
        grid: key -> values, of which each combination is a candidate.
        folder: of the comparison.

    Raises:
        InputError: If the arm has no number that could be multiplied.
        RecipeError: If an arm cannot have a value.
    """
    seed = _seed(arm)
    own = arm.recipe(seed).as_dict()
    share = arm.recipe(seed).data.holdout or USUAL_HOLDOUT
    there, made = ComparisonFolder(folder / FOLDER), list[Choice]()
    for combination in product(*grid.values()):
        said = dict(zip(grid, combination, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={_written(v)}" for key, v in said.items())
        changes = {key: _value(own, value, key, arm.name) for key, value in said.items()}
        chosen = arm.changed(changes, f"{OPTION} for {arm.name}")
        judged = chosen.changed({"data.holdout": share}, OPTION)
        recipe = judged.recipe(seed, f" and {OPTION} {name}")
        values = {key: _json(number_of(value), value) for key, value in changes.items()}
        trial = there.trial(f"{arm.name}/{_folder_name(name, said)}", recipe)
        made.append(Choice(name, chosen, values, trial))
    return made


def best_of(choices: Sequence[Choice], outcomes: Mapping[str, Outcome]) -> Choice | None:
    """Return the candidate of largest accuracy on what is held out; None where none finished.

    Equal ones, and targets that are numbers, are told apart by the loss; then the first is taken.

    Args:
        choices: of one arm.
        outcomes: arm of its trial -> how it ended.
    """
    found = [(choice, outcomes[choice.trial.arm].summary) for choice in choices]
    done = [
        (-(s.holdout_accuracy or 0.0), s.holdout_loss, number, choice)
        for number, (choice, s) in enumerate(found)
        if s.status == "finished" and s.holdout_loss is not None
    ]
    return min(done)[-1] if done else None


def tuned_arm(
    arm: ComparedArm, choices: Sequence[Choice], outcomes: Mapping[str, Outcome]
) -> tuple[ComparedArm, Tuned, list[Candidate]]:
    """Return an arm with its best values, what they are, and how all candidates did; say it.

    Where no candidate finished, the arm stays as it is.
    """
    best = best_of(choices, outcomes)
    candidates = [_candidate(arm.name, choice, outcomes, best) for choice in choices]
    figures = "; ".join(
        f"{choice.name} {_figure(candidate)}"
        for choice, candidate in zip(choices, candidates, strict=True)
    )
    if best is None:
        say(f"tuned {arm.name}: no candidate finished ({figures}), so it stays as it is")
        return arm, Tuned(values={}, at_edge=[]), candidates
    edges = [key for key in best.values if _is_edge(key, best, choices)]
    say(f"tuned {arm.name}: {best.name} is best on what is held out ({figures})")
    if edges:
        lie = "lies" if len(edges) == 1 else "lie"
        say(f"note: {arm.name}: the best {' and '.join(edges)} {lie} at the edge of what was tried")
    return best.arm, Tuned(values=best.values, at_edge=edges), candidates


def _seed(arm: ComparedArm) -> int:
    """Return the seed of candidates: the first after TUNING_SEED that no trial has."""
    seed = arm.base.recipe.seed + TUNING_SEED
    while (seed := seed % 2**31) in arm.base.seeds:
        seed += 1
    return seed


def _unknown(data: Mapping[str, object], key: str) -> str:
    """Return what is wrong with a key of a recipe that has no such key; "" where it may have it."""
    found = early_problems(with_values(data, {key: None}, OPTION))
    wrong = ("unknown key", "has no parameter")
    told = [why for place, why in found if f"{key}.".startswith(f"{place}.")]
    return next((why for why in told if any(word in why for word in wrong)), "")


def _value(data: Mapping[str, object], value: object, key: str, arm: str) -> object:
    """Return what stands at a key of a candidate, where `data` are the arm's recipe."""
    own = at(data, key)
    factor = FACTOR.fullmatch(value) if isinstance(value, str) else None
    if factor is None:
        number = None if isinstance(value, dict) else number_of(value)
        if number is not None and isinstance(own, dict) and number_of(own):
            return scaled(own, number)
        return value
    number = number_of(own)
    if number is None or (number == 0 and is_schedule(own)):
        if own is None and (why := _unknown(data, key)):
            raise InputError(f"{OPTION} {key}: {why}")
        what = "nothing" if own is None else shown(own)
        raise InputError(
            f"{OPTION} {key}: {value} multiplies a number, and {arm} has {what} there; give values"
        )
    product_ = times(number, float(factor[0][:-1]))
    return scaled(own, product_) if isinstance(own, dict) else product_


def _written(value: object) -> str:
    """Return a value as it is written in one line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _folder_name(name: str, said: Mapping[str, object]) -> str:
    """Return a name that is safe as a folder's, and another one for other values."""
    safe = _UNSAFE.sub("_", name)
    if safe == name and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(repr(sorted(said.items())).encode()).hexdigest()[:8]
    return f"{safe[:LONGEST]}-{digest}"


def _json(number: float | None, value: object) -> JsonValue:
    return number if number is not None else brief(_written(value))


def _candidate(
    arm: str, choice: Choice, outcomes: Mapping[str, Outcome], best: Choice | None
) -> Candidate:
    outcome = outcomes[choice.trial.arm]
    summary, done = outcome.summary, outcome.finished
    return Candidate(
        arm=arm,
        values=choice.values,
        seed=choice.trial.seed,
        holdout_accuracy=summary.holdout_accuracy if done else None,
        holdout_loss=summary.holdout_loss if done else None,
        failed=not done,
        chosen=choice is best,
    )


def _figure(candidate: Candidate) -> str:
    if candidate.failed:
        return "failed"
    if candidate.holdout_accuracy is None:
        return f"loss {candidate.holdout_loss:.4g}"
    return f"{100 * candidate.holdout_accuracy:.2f} %"


def _is_edge(key: str, best: Choice, choices: Sequence[Choice]) -> bool:
    """Tell whether the best number is the smallest or the largest of several that were tried."""
    tried = [choice.values[key] for choice in choices]
    numbers = sorted({value for value in tried if isinstance(value, int | float)})
    return len(numbers) > 1 and best.values[key] in (numbers[0], numbers[-1])

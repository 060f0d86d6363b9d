"""Arms made fair before they are compared: matched in their rates, and tuned with equal budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qtool.comparison.arms.compared import ComparedArm, trials_of
from qtool.comparison.arms.matching import OPTION, NoAlphaError, integrated_rate, matched
from qtool.comparison.arms.tuning import FOLDER, Choice, Tuned, choices_of, grid_of, tuned_arm
from qtool.comparison.execution.plan import About
from qtool.comparison.execution.trials import ComparisonFolder, Kind, Outcome, TrainTrial
from qtool.comparison.question import ComparisonRequest, Side
from qtool.console import say
from qtool.errors import InputError, QtoolError
from qtool.files.lock import only_writer
from qtool.reports.comparisons import Comparison
from qtool.reports.fairness import Candidate

Match = Literal["alpha"]


@dataclass(frozen=True)
class Fairness:
    """What is asked for, so that arms have an equal chance.

    Attributes:
        tune: keys and values to choose from for each arm, as `--tune` writes them.
        match: alpha divides each layer's learning rate by its alpha.
    """

    tune: Sequence[str] = ()
    match: Match | None = None


AS_THEY_ARE = Fairness()


@dataclass(frozen=True)
class FairArms:
    """The arms as they are to be compared, and what was done to them.

    Attributes:
        arms: in their order.
        match: what they are matched in.
        tuned: arm -> what it was given.
        candidates: how each candidate did.
    """

    arms: list[ComparedArm]
    match: Match | None = None
    tuned: dict[str, Tuned] = field(default_factory=dict[str, Tuned])
    candidates: list[Candidate] = field(default_factory=list[Candidate])

    def said_in(self, result: Comparison) -> Comparison:
        """Return what comparison.json says, with what was done to the arms, and their rates."""
        rates = {arm.name: _rate_of(arm) for arm in self.arms}
        first = next(iter(rates.values()))
        shares = {name: rate / first if rate and first else None for name, rate in rates.items()}
        arms = [
            arm.model_copy(update={"integrated_rate": share})
            if (share := shares.get(arm.name)) is not None
            else arm
            for arm in result.arms
        ]
        more: dict[str, object] = {"arms": arms}
        if self.match:
            more["match"] = self.match
        if self.tuned:
            more |= {
                "tuned": {name: tuned.values for name, tuned in self.tuned.items()},
                "at_edge": {n: t.at_edge for n, t in self.tuned.items() if t.at_edge},
                "candidates": self.candidates,
            }
        return result.model_copy(update=more)


def _rate_of(arm: ComparedArm) -> float | None:
    """Return the mean learning rate that reaches an arm's weights, where it can be known."""
    try:
        return integrated_rate(arm.recipe(arm.base.recipe.seed))
    except QtoolError:  # a network that only its data can tell: its trials are what counts
        return None


def fair_arms(
    arms: Sequence[ComparedArm],
    asked: Fairness,
    request: ComparisonRequest,
    kind: Kind,
    *,
    on: Side | None = None,
    named: bool = True,
) -> FairArms:
    """Return the arms of a comparison as they are to be trained; their candidates are, here.

    Args:
        arms: as the recipe and the command have them.
        asked: what is to be done to them.
        request: where trials are trained, and on what.
        kind: what the arms are.
        on: side of the network that differs.
        named: the user chose the arms; else one that cannot be matched is left out.

    Raises:
        InputError: If an arm cannot be matched, or has no such number.
        RecipeError: If an arm cannot have a value.
    """
    made = _matched(arms, on, named=named) if asked.match else list(arms)
    if not asked.tune:
        return FairArms(made, asked.match)
    grid, folder = grid_of(asked.tune), request.usable_folder(kind)
    choices = {arm.name: choices_of(arm, grid, folder.path) for arm in made}
    _ = trials_of(made, folder)  # a mistake there is told before candidates are trained
    every = [choice.trial for each in choices.values() for choice in each]
    say(f"tuning: {len(every)} trainings of {len(made)} arms, judged by images that are held out")
    train = TrainTrial(request.device, request.access, keep=request.execution.keep)
    about = About(kind, str(request.recipe), ComparisonFolder(folder.path / FOLDER))
    with only_writer(folder.path):
        outcomes = request.execution.outcomes_of(every, train, about)
        about.folder.report.unlink(missing_ok=True)  # candidates are no comparison
    return _tuned(made, choices, {name: done[0] for name, done in outcomes.items()}, asked.match)


def _matched(arms: Sequence[ComparedArm], on: Side | None, *, named: bool) -> list[ComparedArm]:
    """Return arms that share the integrated rate of straight_through.

    Raises:
        InputError: If an arm that the user chose has no alpha, or no arm has one.
    """
    if on == "activations":
        raise InputError(f"{OPTION}: is for weights; give --on weights, or leave it out")
    made, left_out = list[ComparedArm](), list[str]()
    for arm in arms:
        try:
            made.append(matched(arm))
        except NoAlphaError:
            if named or (arm is arms[-1] and not made):
                raise
            left_out.append(arm.name)
    if left_out:
        say(f"left out, as they have no alpha to match: {', '.join(left_out)}")
    return made


def _tuned(
    arms: Sequence[ComparedArm],
    choices: Mapping[str, Sequence[Choice]],
    outcomes: Mapping[str, Outcome],
    match: Match | None,
) -> FairArms:
    found = FairArms([], match)
    for arm in arms:
        chosen, tuned, candidates = tuned_arm(arm, choices[arm.name], outcomes)
        found.arms.append(chosen)
        found.tuned[arm.name] = tuned
        found.candidates.extend(candidates)
    return found

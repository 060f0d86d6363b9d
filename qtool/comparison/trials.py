"""Arms x seeds: start, resume or reuse every trial, and collect what they reached.

A trial is all that it takes to train it, and pickles; so does `TrainTrial`, which trains one. Where
and when trials are trained is an executor's business: it takes trials and what trains one, and
yields their outcomes. To add one, write a callable of the type `Executor` beside `one_by_one`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from qtool.comparison.statistics.differences import (
    Reached,
    differences_from_first,
    mean_and_std,
)
from qtool.comparison.statistics.verdicts import verdict
from qtool.console import say
from qtool.errors import InputError, TrainingError
from qtool.files.whole import refuse_unless_makeable
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import Arm, Comparison, Difference
from qtool.reports.results import Summary
from qtool.runs.access import OWN, Access
from qtool.runs.folder import RunFolder
from qtool.runs.run import Run
from qtool.runs.train import train_run


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        arm: the compared choice, as it is shown.
        seed: of the run; runs of the same seed are held against each other.
        recipe: resolved.
        folder: of the run.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: RunFolder

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class ComparisonFolder:
    """A folder that a comparison lies in, or may lie in: a run folder for each trial, a report."""

    path: Path

    @property
    def report(self) -> Path:
        """What the trials show."""
        return self.path / "comparison.json"

    def run(self, arm: str, seed: int) -> RunFolder:
        """Return the folder of a trial's run."""
        return RunFolder(self.path / arm / f"seed-{seed}")

    def trial(self, arm: str, recipe: Recipe) -> Trial:
        """Return the trial that trains a recipe for an arm, on the recipe's seed."""
        return Trial(arm, recipe.seed, recipe, self.run(arm, recipe.seed))

    def refuse_unless_usable(self) -> None:
        """Check that the folder is there or can be made, and that no run lies in it.

        Raises:
            InputError: If it cannot, or one does.
        """
        refuse_unless_makeable(self.path)
        if RunFolder(self.path).holds_run():
            raise InputError(
                f"{self.path}: holds a run; choose another --output for the comparison"
            )


@dataclass(frozen=True)
class Outcome:
    """How far a trial came."""

    trial: Trial
    summary: Summary

    @property
    def finished(self) -> bool:
        """Tell whether it was trained to its end."""
        return self.summary.status == "finished"

    @property
    def accuracy(self) -> float | None:
        """Return its validation accuracy; None where it failed, or labels are no classes."""
        return self.summary.validation_accuracy if self.finished else None


Kind = Literal["estimators", "schedules"]  # what the arms are
Outcomes = Mapping[str, Sequence[Outcome]]  # arm -> its outcomes, seed by seed
Train = Callable[[Trial], Summary]
Executor = Callable[[Sequence[Trial], Train], Iterable[Outcome]]


@dataclass(frozen=True)
class TrainTrial:
    """Trains a trial, goes on with it, or reuses it; one that diverges does not stop the others.

    Attributes:
        device: that it is trained on.
        access: what the recipe of all trials may reach.
        records: keep every flip of its weights' codes too.
    """

    device: torch.device
    access: Access = OWN
    records: bool = False

    def __call__(self, trial: Trial) -> Summary:
        """Return how the trial ended.

        Raises:
            InputError: If its folder holds anything else.
        """
        run = Run(trial.folder, trial.recipe, self.device, self.access.taken(trial.recipe))
        try:
            return train_run(run, resume=True, with_plan=False, records=self.records)
        except TrainingError as error:
            say(f"trial failed: {error}")
            return Summary.read(trial.folder.summary)


def one_by_one(trials: Sequence[Trial], train: Train) -> Iterator[Outcome]:
    """Train trials in this process, each after the one before it."""
    for number, trial in enumerate(trials, 1):
        say(f"trial {number}/{len(trials)}: {trial}")
        yield Outcome(trial, train(trial))


def run_trials(
    trials: Sequence[Trial], train: Train, executor: Executor = one_by_one
) -> dict[str, list[Outcome]]:
    """Run every trial, seed by seed, so that arms stay comparable when they are stopped.

    Args:
        trials: in the order of their arms, and of their seeds within an arm.
        train: trains one of them, or returns the summary of one that is done.
        executor: calls it, now or elsewhere.

    Returns:
        The outcomes of each arm, in the order of the trials.
    """
    seeds = dict.fromkeys(trial.seed for trial in trials)
    in_turn = [trial for seed in seeds for trial in trials if trial.seed == seed]
    done = {(each.trial.arm, each.trial.seed): each for each in executor(in_turn, train)}
    outcomes: dict[str, list[Outcome]] = {}
    for trial in trials:
        outcomes.setdefault(trial.arm, []).append(done[trial.arm, trial.seed])
    return outcomes


def arms_and_differences(outcomes: Outcomes) -> tuple[list[Arm], list[Difference]]:
    """Return what each arm reached, and how the others differ from the first."""
    arms = [_arm(name, done) for name, done in outcomes.items()]
    reached = [Reached.only(arm.name, arm.values) for arm in arms]
    return arms, differences_from_first(reached)


def _arm(name: str, outcomes: Sequence[Outcome]) -> Arm:
    values = [outcome.accuracy for outcome in outcomes]
    mean, spread = mean_and_std([value for value in values if value is not None])
    failed = sum(not outcome.finished for outcome in outcomes)
    return Arm(name=name, values=values, mean=mean, std=spread, failed=failed)


def summarize_trials(
    outcomes: Outcomes,
    *,
    kind: Kind,
    recipe: str,
    on: str,
) -> Comparison:
    """Return what comparison.json says.

    Args:
        outcomes: of the arms.
        kind: what the arms are.
        recipe: path of what they share.
        on: whose estimator, or which schedule, differs.
    """
    arms, differences = arms_and_differences(outcomes)
    return Comparison(
        kind=kind,
        recipe=recipe,
        seeds=[outcome.trial.seed for outcome in next(iter(outcomes.values()))],
        arms=arms,
        differences=differences,
        verdict=verdict(differences, {arm.name: arm.failed for arm in arms}),
        on=on,
    )

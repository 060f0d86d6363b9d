"""Arms x seeds: start, resume or reuse every trial, and collect what they reached.

A trial is all that it takes to train it, and pickles; so does `TrainTrial`, which trains one. Where
and when trials are trained is the business of `qtool.comparison.execution.executors`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import torch

from qtool.comparison.execution.kept_files import (
    Keep,
    damage_of,
    damaged_reports,
    mend,
    prune,
)
from qtool.console import say
from qtool.errors import InputError, QtoolError, TrainingError
from qtool.files.kinds import COMPARISON
from qtool.files.whole import refuse_unless_makeable
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import FailedTrial
from qtool.reports.results import Summary
from qtool.runs.access import OWN, Access
from qtool.runs.kept.changes import read_record
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.runs.train import finished_before, train_run


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        arm: the compared choice, as it is shown.
        seed: of the run; runs of the same seed are held against each other.
        recipe: resolved.
        folder: of the run.
        threads: of the processor, on which the last bits of its numbers depend; None for as many
            as torch takes.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: RunFolder
    threads: int | None = None

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class ComparisonFolder:
    """A folder that a comparison lies in, or may lie in: a run folder for each trial, a report."""

    path: Path

    @property
    def report(self) -> Path:
        """What the trials show."""
        return self.path / COMPARISON

    @property
    def page(self) -> Path:
        """The same, for people."""
        return self.path / "report.html"

    def run(self, arm: str, seed: int) -> RunFolder:
        """Return the folder of a trial's run."""
        return RunFolder(self.path / arm / f"seed-{seed}", option="--output")

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


@dataclass(frozen=True)
class TrainTrial:
    """Trains a trial, goes on with it, or reuses it; one that fails does not stop the others.

    Attributes:
        device: that it is trained on.
        access: what the recipe of all trials may reach.
        records: keep every flip of its weights' codes too.
        keep: which of its checkpoints stay once it is finished.
        explains: look at its coarse gradient and activations after each epoch.
    """

    device: torch.device
    access: Access = OWN
    records: bool = False
    keep: Keep = "all"
    explains: bool = False

    def __call__(self, trial: Trial) -> Summary:
        """Return how the trial ended: also one that diverged, or whose folder is damaged.

        Raises:
            InputError: If its folder holds anything else, or nothing can be trained at all.
        """
        folder = trial.folder
        with threads_of(trial):
            try:
                mend(folder)
                reused = folder.finished_summary() is not None
                access = self.access.taken(trial.recipe)
                run = Run(folder, trial.recipe, self.device, access)
                summary = train_run(
                    run,
                    resume=True,
                    with_plan=False,
                    records=self.records,
                    explains=self.explains,
                )
                if self.records and reused:
                    _ = read_record(folder, summary.epochs)
            except TrainingError as error:
                say(f"trial failed: {error}")
                return Summary.read(folder.summary)
            except InputError as error:
                if not damage_of(folder, records=self.records):
                    raise
                say(f"trial failed: {error}")
                return failed_summary(trial, str(error))
            prune(folder, self.keep)
            return summary

    def finished_before(self, trial: Trial) -> Summary | None:
        """Return the summary of a trial that has nothing left to train, without any training.

        None of any other, and of one whose folder is damaged: to train it tells what becomes of it.

        Raises:
            InputError: If its folder holds anything else.
        """
        folder = trial.folder
        try:
            if damaged_reports(folder):
                return None
            run = Run(folder, trial.recipe, self.device, self.access.taken(trial.recipe))
            summary = finished_before(run, resume=True)
            if self.records and summary is not None:
                _ = read_record(folder, summary.epochs)
        except InputError:
            if not damage_of(folder, records=self.records):
                raise
            return None
        if summary is not None:
            prune(folder, self.keep)
        return summary


@contextmanager
def threads_of(trial: Trial) -> Generator[None]:
    """Compute inside with as many threads as a trial has."""
    before = torch.get_num_threads()
    if trial.threads not in (None, before):
        torch.set_num_threads(trial.threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def failed_summary(trial: Trial, why: str) -> Summary:
    """Return the summary of a trial that could not say itself why it failed."""
    try:
        said = Summary.read(trial.folder.summary)
    except QtoolError:
        nothing = dict.fromkeys(Summary.figures)
        counts = {"epochs": 0, "seconds": 0.0, "parameters": 0, "weight_bits_mean": 0.0}
        return Summary.model_validate(
            {"status": "failed", "run": str(trial.folder), **counts, **nothing, "error": why}
        )
    return said.model_copy(update={"status": "failed", "error": why})


class OfTrials(TypedDict):
    """What every comparison.json says of its trials."""

    threads: int | None
    failed_trials: list[FailedTrial]


def of_trials(outcomes: Outcomes) -> OfTrials:
    """Return with how many threads trials were trained, and which failed, in their order."""
    every = [outcome for done in outcomes.values() for outcome in done]
    return {
        "threads": every[0].trial.threads if every else None,
        "failed_trials": failed_trials(every),
    }


def failed_trials(outcomes: Sequence[Outcome]) -> list[FailedTrial]:
    """Return which of some trials did not come to their end, and why."""
    return [
        FailedTrial(
            arm=outcome.trial.arm,
            seed=outcome.trial.seed,
            error=outcome.summary.error or f"ended as {outcome.summary.status}",
        )
        for outcome in outcomes
        if not outcome.finished
    ]

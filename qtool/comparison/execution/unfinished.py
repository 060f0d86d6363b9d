"""comparison.json while trials are trained: written after each, and told from a finished one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qtool.comparison.execution.trials import Outcome, Trial, failed_trials
from qtool.comparison.statistics.differences import mean_and_std
from qtool.errors import QtoolError
from qtool.files.json_data import read_json
from qtool.reports.comparisons import Arm, Partial, UnfinishedComparison

Kind = Literal["estimators", "schedules", "equivalence"]


@dataclass(frozen=True)
class Unfinished:
    """Writes comparison.json while a comparison is not finished.

    One of before stays as it is until a trial is done that was not done then.

    Attributes:
        path: of the file.
        kind: of comparison.
        recipe: path of what the arms share.
        trials: in the order of their arms, and of their seeds within an arm.
        known: those that had been finished before.
    """

    path: Path
    kind: Kind
    recipe: str
    trials: Sequence[Trial]
    known: frozenset[str]

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        """Write what there is after some of the trials."""
        if len(outcomes) == len(self.trials):  # what follows is the whole
            return
        if all(outcome.finished and str(outcome.trial) in self.known for outcome in outcomes):
            return
        self.report(outcomes).write(self.path)

    def report(self, outcomes: Sequence[Outcome]) -> UnfinishedComparison:
        """Return what the file says after some of the trials."""
        done, of = len(outcomes), len(self.trials)
        by_name = {str(outcome.trial): outcome for outcome in outcomes}
        trials = {
            arm: [trial for trial in self.trials if trial.arm == arm]
            for arm in dict.fromkeys(trial.arm for trial in self.trials)
        }
        in_order = [by_name[name] for name in map(str, self.trials) if name in by_name]
        return UnfinishedComparison.model_validate(
            {
                "kind": self.kind,
                "recipe": self.recipe,
                "seeds": list(dict.fromkeys(trial.seed for trial in self.trials)),
                "arms": [_arm(arm, own, by_name) for arm, own in trials.items()],
                "verdict": f"not finished: {done} of {of} trials are done, so nothing is judged",
                "threads": self.trials[0].threads,
                "failed_trials": failed_trials(in_order),
                "partial": Partial(done=done, trials=of),
                **looks_of(self.path),
            }
        )


def looks_of(path: Path) -> dict[str, object]:
    """Return the looks that a comparison.json of before records, which must not be forgotten."""
    try:
        said = read_json(path) if path.is_file() else {}
    except QtoolError:
        return {}
    return {"looks": said["looks"]} if "looks" in said else {}


def _arm(name: str, trials: Sequence[Trial], done: dict[str, Outcome]) -> Arm:
    outcomes = [done.get(str(trial)) for trial in trials]
    values = [None if outcome is None else outcome.accuracy for outcome in outcomes]
    mean, spread = mean_and_std([value for value in values if value is not None])
    failed = sum(outcome is not None and not outcome.finished for outcome in outcomes)
    return Arm(name=name, values=values, mean=mean, std=spread, failed=failed)

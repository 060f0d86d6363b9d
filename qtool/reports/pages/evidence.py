"""What a comparison's page rests on beside its comparison.json: what its trials' folders tell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qtool.reports.comparisons import Comparison, Equivalence, FailedTrial
from qtool.reports.pages.curves import OfArms, curves_of_arms
from qtool.reports.pages.page import Picture, Said
from qtool.reports.pages.repeat import again
from qtool.reports.pages.tables import Heat, Table, heat_map
from qtool.reports.results import EpochLine, Summary
from qtool.reports.words import duration, number


@dataclass(frozen=True)
class TrialShown:
    """What the run of a trial says of itself, as far as its folder is there."""

    arm: str
    seed: int | None
    summary: Summary | None = None
    history: Sequence[EpochLine] = ()

    def __str__(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Evidence:
    """What the folders of a comparison's trials tell.

    Attributes:
        trials: in the order of the arms, and of the seeds within one.
        recipes: arm -> its recipe, of its first seed.
        environment: as a run keeps it.
        command: that began the comparison, "" where nobody knows.
        pictures: of the estimators that are compared.
    """

    trials: Sequence[TrialShown] = ()
    recipes: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    pictures: Sequence[Picture] = ()


def told_by_trials(shown: Evidence, result: Comparison | Equivalence) -> dict[str, object]:
    """Return what the template of evidence is given, on every page that rests on trials.

    Args:
        shown: what their folders tell.
        result: what comparison.json says.
    """
    return {
        "curves": curves_of_arms(histories(shown), held_against(result)),
        "layers": list(layers(shown)),
        "warnings": list(warnings(shown)),
        "failed": list(failed(shown, result.failed_trials)),
        "pictures": shown.pictures,
        "again": again(shown.command, shown.recipes, shown.environment),
    }


def held_against(result: Comparison | Equivalence) -> dict[str, str]:
    """Return the arm that each of the others is held against."""
    return {each.arm: each.against for each in result.differences}


def facts(shown: Evidence) -> Iterator[tuple[str, str]]:
    """Yield how long trials were trained."""
    known = [trial.summary for trial in shown.trials if trial.summary is not None]
    if known:
        yield "epochs", str(max(each.epochs for each in known))
        yield "training time in all", duration(sum(each.seconds for each in known))


def histories(shown: Evidence) -> list[OfArms]:
    """Return the epochs of every arm's trials."""
    found: dict[str, list[Sequence[EpochLine]]] = {}
    for trial in shown.trials:
        if trial.history:
            found.setdefault(trial.arm, []).append(trial.history)
    return [OfArms(name, each) for name, each in found.items()]


MEASURES = {  # key -> its name, and what its values are multiplied by
    "levels_in_use": ("levels in use", 1.0),
    "sqnr": ("SQNR of the weight, dB", 1.0),
    "oscillation_frequency": ("oscillation, ‰", 1000.0),
    "flip_ratio": ("flips, ‰ a step", 1000.0),
    "weight_scale": ("scale of the weight", 1.0),
}


def layers(shown: Evidence) -> Iterator[Table]:
    """Yield heat maps of arms by layers, at the end of training, mean over seeds."""
    for measure, (title, unit) in MEASURES.items():
        by_arm: dict[str, list[Mapping[str, float]]] = {}
        for trial in shown.trials:
            said = getattr(trial.history[-1], measure) if trial.history else None
            if said:
                by_arm.setdefault(trial.arm, []).append(said)
        names = list(dict.fromkeys(key for many in by_arm.values() for one in many for key in one))
        columns = [
            (arm, [_mean([unit * one[name] for one in many if name in one]) for name in names])
            for arm, many in by_arm.items()
        ]
        known = [value for _, values in columns for value in values if value is not None]
        if not known:
            continue
        least = 0.0 if unit > 1 else min(known)
        heats = [
            Heat(arm, values, [number(value, 3) for value in values], least, max(known))
            for arm, values in columns
        ]
        yield heat_map("layer", names, heats, title)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def failed(shown: Evidence, failures: Sequence[FailedTrial]) -> Iterator[Said]:
    """Yield the trials that did not come to their end, and why."""
    said = {f"{each.arm}, seed {each.seed}": each.error for each in failures}
    for trial in shown.trials:
        if trial.summary is not None and trial.summary.status != "finished":
            why = trial.summary.error or f"it is {trial.summary.status}"
            said.setdefault(str(trial), why)
    for name, why in said.items():
        yield Said(name, why)


def warnings(shown: Evidence) -> Iterator[Said]:
    """Yield each kind of finding in a layer once, with how many trials have it."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for trial in shown.trials:
        for one in trial.summary.health if trial.summary is not None else ():
            of = found.setdefault((one.layer, one.kind), [])
            of.append((str(trial), one.says))
    for (layer, _), trials in found.items():
        trial, says = trials[0]
        more = "" if len(trials) == 1 else f"; the like in {len(trials)} of {len(shown.trials)}"
        yield Said(layer, f"{says} ({trial}{more})")

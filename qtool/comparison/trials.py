"""Arms x seeds: start, resume or reuse every trial, and collect what they reached."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.comparison.statistics import mean_and_std, paired_difference, verdict
from qtool.console import say

RunTrial = Callable[[Any, Path], dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """One compared choice.

    Attributes:
        name: how it is shown.
        recipes: one resolved recipe for each seed.
    """

    name: str
    recipes: list[Any]


def run_trials(
    arms: list[Arm], seeds: list[int], folder: Path, run_trial: RunTrial
) -> dict[str, list[dict[str, Any]]]:
    """Run every trial in a folder of its own, seed by seed, so that arms stay comparable.

    Args:
        arms: the compared choices.
        seeds: one trial of each arm for each.
        folder: of the comparison; trial folders are `arm/seed-N` in it.
        run_trial: trains a recipe in a folder, or returns the summary of a trial that is done.

    Returns:
        The summaries of each arm, in the order of `seeds`.
    """
    summaries: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    count = len(arms) * len(seeds)
    for index, seed in enumerate(seeds):
        for arm in arms:
            number = sum(len(done) for done in summaries.values()) + 1
            say(f"trial {number}/{count}: {arm.name}, seed {seed}")
            place = folder / arm.name / f"seed-{seed}"
            summaries[arm.name].append(run_trial(arm.recipes[index], place))
    return summaries


def summarize_trials(
    kind: str, recipe: str, seeds: list[int], summaries: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return what comparison.json says."""
    values = {
        name: [s["validation_accuracy"] if s["status"] == "finished" else None for s in done]
        for name, done in summaries.items()
    }
    arms = []
    for name, reached in values.items():
        finished = [value for value in reached if value is not None]
        mean, spread = mean_and_std(finished)
        failed = sum(summary["status"] != "finished" for summary in summaries[name])
        arms.append(
            {"name": name, "values": reached, "mean": mean, "std": spread, "failed": failed}
        )
    first, *others = values
    differences = [paired_difference(name, first, values[name], values[first]) for name in others]
    return {
        "kind": kind,
        "recipe": recipe,
        "seeds": seeds,
        "arms": arms,
        "differences": [item.as_dict() for item in differences],
        "verdict": verdict(differences, {arm["name"]: arm["failed"] for arm in arms}),
    }

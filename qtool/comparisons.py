"""The stories of comparison: arms x seeds -> trials -> one honest verdict, in comparison.json."""

from functools import partial
from pathlib import Path
from typing import Any

from qtool import arms, assembly, inspection, run_folder
from qtool.comparison.equivalence import equivalence_report, read_trial
from qtool.comparison.trials import Arm, run_trials, summarize_trials
from qtool.console import say
from qtool.errors import TrainingError
from qtool.pipeline import train_recipe
from qtool.recipe import Recipe
from qtool.schedule_arms import schedule_arms


def compare_estimators(
    recipe_path: Path,
    names: list[str] | None = None,
    on: str | None = None,
    seeds: int | list[int] = 3,
    output: Path | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Recipe x estimators x seeds -> trials -> comparison.json; return what it says."""
    assembly.pick_device(device)
    compared, chosen, side = arms.estimator_arms(recipe_path, names, on, seeds, assignments)
    return _compare("estimators", side, recipe_path, compared, chosen, output, device)


def compare_schedules(
    recipe_path: Path,
    names: list[str] | None = None,
    on: str = "alpha",
    windows: list[list[float]] | None = None,
    seeds: int | list[int] = 3,
    output: Path | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Recipe x schedules x seeds -> trials -> comparison.json; return what it says."""
    assembly.pick_device(device)
    compared, chosen = schedule_arms(recipe_path, names, on, windows, seeds, assignments)
    return _compare("schedules", on, recipe_path, compared, chosen, output, device)


def _compare(
    kind: str,
    on: str,
    recipe_path: Path,
    compared: list[Arm],
    seeds: list[int],
    output: Path | None,
    device: str,
) -> dict[str, Any]:
    """Run every trial of a comparison, and write and return comparison.json."""
    folder = arms.comparison_folder(output, recipe_path, kind)
    summaries = run_trials(compared, seeds, folder, partial(_run_trial, device=device))
    result = summarize_trials(kind, str(recipe_path), seeds, summaries) | {"on": on}
    run_folder.write_json(folder / run_folder.COMPARISON, result)
    return result


def compare_equivalence(
    recipe_path: Path,
    name: str | None = None,
    rates: list[float] | None = None,
    seeds: int | list[int] = 1,
    output: Path | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Recipe x learning rates x seeds -> custom, mapped, naive, jitter -> comparison.json."""
    assembly.pick_device(device)
    theory, question = arms.equivalence(recipe_path, name, rates, seeds, assignments)
    folder = arms.comparison_folder(output, recipe_path, "equivalence")
    compared = arms.equivalence_arms(theory, question, folder, recipe_path)
    run_trial = partial(_run_trial, device=device, records=True)
    summaries = run_trials(compared, question.seeds, folder, run_trial)
    result = equivalence_report(
        str(recipe_path),
        question,
        summaries,
        lambda arm, seed: read_trial(folder / arm / f"seed-{seed}"),
    )
    run_folder.write_json(folder / run_folder.COMPARISON, result)
    return result


def _run_trial(
    recipe: Recipe, place: Path, *, device: str, records: bool = False
) -> dict[str, Any]:
    """Train a trial, go on with it or reuse it; one that diverges does not stop the others."""
    try:
        return train_recipe(recipe, place, device, resume=True, with_plan=False, records=records)
    except TrainingError as error:
        say(f"trial failed: {error}")
        return run_folder.read_json(place / run_folder.SUMMARY)


def compare_runs(sources: list[Path], output: Path | None = None) -> dict[str, Any]:
    """Finished runs and ONNX files -> one table; written to comparison.json where asked."""
    shown = [inspection.arm_of(source) for source in sources]
    result = {
        "kind": "runs",
        "recipe": None,
        "seeds": [],
        "arms": shown,
        "differences": [],
        "verdict": inspection.verdict_on(shown),
    }
    if output is not None:
        run_folder.write_json(output / run_folder.COMPARISON, result)
    return result

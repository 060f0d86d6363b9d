"""The stories qtool can tell: train, convert, export, compare, inspect. Start reading here.

recipe -> loaders, float model -> prepare -> train -> checkpoint
-> convert -> integer model -> export -> ONNX, proven in the runtime
-> compare: many runs, one verdict
"""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtool.comparison.equivalence import equivalence_report, read_trial
from qtool.comparison.equivalence_arms import equivalence, equivalence_arms
from qtool.comparison.estimators import estimator_arms
from qtool.comparison.finished import arm_of, verdict_on
from qtool.comparison.question import comparison_folder
from qtool.comparison.schedules import schedule_arms
from qtool.comparison.trials import Arm, run_trials, summarize_trials
from qtool.console import say
from qtool.conversion.report import conversion_report
from qtool.conversion.to_integer import convert as convert_model
from qtool.conversion.to_integer import round_biases
from qtool.errors import ExportError, InputError, TrainingError
from qtool.export.gate import hint_for
from qtool.export.measure import export_report
from qtool.export.onnx_qdq import export_onnx
from qtool.export.qdq_modules import Ceil
from qtool.export.targets.target import TARGETS
from qtool.files.reading import read_json
from qtool.files.whole import refuse_unless_writable, unproven, write_json
from qtool.inspection import estimators
from qtool.inspection.inspect import inspect_source
from qtool.integer.file import save_integer
from qtool.models.vision import rebuild_model
from qtool.quantizers.prepare import plan
from qtool.recipe.recipe import Recipe
from qtool.reports.tables import show_plan
from qtool.runs import build, checkpoint
from qtool.runs.changes import ChangeRecorder
from qtool.runs.folder import (
    CHECKPOINT,
    COMPARISON,
    CONVERT,
    EXPORT,
    INTEGER,
    ONNX,
    RECIPE,
    SUMMARY,
    integer_is_fresh,
    refuse_unless_run,
    report_beside,
    write_metrics,
)
from qtool.runs.run import (
    calibrated,
    finished_summary,
    folder_for_untrained,
    keep_recipe,
    load_run,
    open_integer,
    open_run,
    start_or_resume,
    summarize,
    write_environment,
)
from qtool.straight_through.run import convert_run
from qtool.training.freed_memory import keep_freed_memory
from qtool.training.profile import StepProfile
from qtool.training.progress import say_epoch

PROOF_BATCHES = 2  # a proof needs real images, not all of them


def train(
    recipe_path: Path,
    run_dir: Path | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    profile: bool = False,
) -> dict[str, Any]:
    """Recipe -> data, model -> fake quantizers -> training -> checkpoint; return the summary."""
    recipe = build.load_checked(recipe_path, assignments)
    folder = run_dir or Path("runs") / recipe_path.stem
    return train_recipe(recipe, folder, device, resume=resume, profile=profile)


def train_recipe(
    recipe: Recipe,
    folder: Path,
    device: str,
    *,
    resume: bool,
    with_plan: bool = True,
    profile: bool = False,
    records: bool = False,
) -> dict[str, Any]:
    """Train a checked recipe in a run folder, from the start or from its last checkpoint.

    With `records`, every change of a weight's code is kept in the folder too.
    """
    chosen = build.pick_device(device)
    open_run(recipe, folder, resume=resume)
    if (finished := finished_summary(folder)) is not None:
        say(f"{folder} is finished already" + (", so nothing is measured" if profile else ""))
        return finished
    say(f"training {folder} on {chosen} ({build.device_name(chosen)})")
    for note in recipe.quantization.notes():
        say(f"note: {note}")
    if chosen.type == "cpu":
        keep_freed_memory()
    loaders = build.make_data(recipe, chosen)
    trainer, architecture = start_or_resume(recipe, loaders, folder, chosen)
    trainer.profile = StepProfile(chosen) if profile else None
    if with_plan:
        show_plan(plan(trainer.model))
    keep_recipe(recipe, folder, "the resolved recipe of this run")
    write_environment(recipe, folder, chosen)
    summarize(folder, "running", trainer.model, trainer.history)
    if records:
        trainer.watcher = ChangeRecorder(trainer.model, folder, len(trainer.history))
    every = recipe.training.checkpoint_every
    if trainer.history and (folder / INTEGER).is_file():
        say("note: what was converted and exported of this run before is of an earlier epoch")

    def after_epoch(line: dict[str, Any]) -> None:
        write_metrics(folder, trainer.history)
        if line["epoch"] % every == 0 or line["epoch"] == trainer.epochs:
            state = checkpoint.take(trainer.model, trainer.optimizer, trainer.history, architecture)
            checkpoint.save(state, folder / CHECKPOINT)
        summarize(folder, "running", trainer.model, trainer.history)
        say_epoch(line, trainer.epochs)

    def finish(model: nn.Module) -> None:
        build.reestimate_batch_norm_on(model, recipe, loaders)
        round_biases(model)

    try:
        trainer.fit(after_epoch, finish)
    except TrainingError as error:
        summarize(folder, "failed", trainer.model, trainer.history, error=str(error))
        raise
    except KeyboardInterrupt:
        recipe_file = folder / RECIPE
        say(f"stopped; go on with: qtool train {recipe_file} --run-dir {folder} --resume")
        raise
    measured = {"profile": trainer.profile.report()} if trainer.profile else {}
    return summarize(folder, "finished", trainer.model, trainer.history, **measured)


def convert_to_straight_through(
    source: Path, output: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Run with a custom estimator -> the straight-through run it is; return convert.json."""
    return convert_run(source, output, build.pick_device(device))


def convert(source: Path, output: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """Run or recipe -> integer model; return what convert.json says.

    A run gives its trained weights; a recipe its given weights, calibrated and not trained.
    """
    chosen, float_accuracy = build.pick_device(device), None
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a run folder or a recipe")
    if output is not None:
        refuse_unless_writable(output, "--output names a .safetensors file")
    if source.is_dir():
        path = output or source / INTEGER
        recipe, model, loaders, architecture = load_run(source, chosen)
    else:
        recipe = build.load_checked(source)
        path = output or folder_for_untrained(recipe, source) / INTEGER
        model, loaders, architecture, float_accuracy = calibrated(recipe, chosen)
        show_plan(plan(model))
    proof = (images for images, _ in islice(loaders.validation.batches(0), PROOF_BATCHES))
    integer = convert_model(model, proof)
    validation = partial(loaders.validation.batches, 0)
    report = conversion_report(model, integer, validation, build.make_loss(recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    if output is None and not source.is_dir():
        keep_recipe(recipe, path.parent, "the recipe of this conversion")
    save_integer(integer, path, {"recipe": recipe.as_dict(), "architecture": architecture})
    report |= {"integer_model": str(path), "validation_accuracy_float": float_accuracy}
    write_json(report_beside(path, CONVERT), report)
    return report


def export(
    source: Path,
    output: Path | None = None,
    target: str = "onnxruntime",
    batch: int | None = None,
    annotate: bool = True,
    ceil: Ceil = "exact",
) -> dict[str, Any]:
    """Run or integer model -> ONNX, run in ONNX Runtime; return what export.json says."""
    _ = TARGETS[target]
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a run folder or integer model")
    if source.suffix in (".yaml", ".yml"):
        raise InputError(f"{source}: a recipe; train or convert it first, then export that folder")
    path = output or (source / ONNX if source.is_dir() else source.with_suffix(".onnx"))
    refuse_unless_writable(path, "--output names an .onnx file")
    integer_path = _up_to_date_integer(source) if source.is_dir() else source
    recipe, integer, architecture = open_integer(integer_path)
    loaders = build.make_data(recipe, torch.device("cpu"))
    images = build.first_images(loaders)
    metadata = {"recipe": recipe.as_dict(), "architecture": architecture}
    with unproven(path) as trial:
        described = export_onnx(
            integer,
            images,
            trial,
            target,
            batch=batch,
            annotate=annotate,
            ceil=ceil,
            metadata=metadata,
        )
        float_model = rebuild_model(recipe.model.name, architecture)
        validation = partial(loaders.validation.batches, 0)
        report = export_report(trial, integer, float_model, validation, described, images[:1])
        report |= {"file": str(path), "target": target}
        beside = report_beside(path, EXPORT)
        write_json(source / EXPORT if source.is_dir() else beside, report)
        if report["disagreement"]:
            raise ExportError(
                f"{path}: ONNX Runtime disagrees with the integer model: "
                f"{report['disagreement']}; the file was not written"
                f"{hint_for(described['layers'])}"
            )
        trial.replace(path)
    return report


def _up_to_date_integer(folder: Path) -> Path:
    """Return a run's integer model, converted first where it is missing or older than the run."""
    refuse_unless_run(folder)
    if not integer_is_fresh(folder):
        say(f"converting {folder} first")
        convert(folder)
    return folder / INTEGER


def inspect(source: Path) -> dict[str, Any]:
    """Recipe, run, integer model or ONNX file -> what it holds."""
    return inspect_source(source)


def inspect_estimators(output: Path | None = None) -> dict[str, Any]:
    """Every gradient estimator -> its formula, its class and, in a page or a folder, pictures."""
    return estimators.inspect_estimators(output)


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
    build.pick_device(device)
    compared, chosen, side = estimator_arms(recipe_path, names, on, seeds, assignments)
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
    build.pick_device(device)
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
    folder = comparison_folder(output, recipe_path, kind)
    summaries = run_trials(compared, seeds, folder, partial(_run_trial, device=device))
    result = summarize_trials(kind, str(recipe_path), seeds, summaries) | {"on": on}
    write_json(folder / COMPARISON, result)
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
    build.pick_device(device)
    theory, asked = equivalence(recipe_path, name, rates, seeds, assignments)
    folder = comparison_folder(output, recipe_path, "equivalence")
    compared = equivalence_arms(theory, asked, folder, recipe_path)
    run_trial = partial(_run_trial, device=device, records=True)
    summaries = run_trials(compared, asked.seeds, folder, run_trial)
    result = equivalence_report(
        str(recipe_path),
        asked,
        summaries,
        lambda arm, seed: read_trial(folder / arm / f"seed-{seed}"),
    )
    write_json(folder / COMPARISON, result)
    return result


def _run_trial(
    recipe: Recipe, place: Path, *, device: str, records: bool = False
) -> dict[str, Any]:
    """Train a trial, go on with it or reuse it; one that diverges does not stop the others."""
    try:
        return train_recipe(recipe, place, device, resume=True, with_plan=False, records=records)
    except TrainingError as error:
        say(f"trial failed: {error}")
        return read_json(place / SUMMARY)


def compare_runs(sources: list[Path], output: Path | None = None) -> dict[str, Any]:
    """Finished runs and ONNX files -> one table; written to comparison.json where asked."""
    shown = [arm_of(source) for source in sources]
    result = {
        "kind": "runs",
        "recipe": None,
        "seeds": [],
        "arms": shown,
        "differences": [],
        "verdict": verdict_on(shown),
    }
    if output is not None:
        write_json(output / COMPARISON, result)
    return result

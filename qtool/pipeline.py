"""The stories qtool can tell: train, convert, export, inspect. Start reading here.

recipe -> loaders, float model -> prepare -> train -> checkpoint
-> convert -> integer model -> export -> ONNX, proven in the runtime

Comparisons, which train many runs, stand in `qtool.comparisons`.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtool import (
    assembly,
    checkpoint,
    equivalent_run,
    gallery,
    inspection,
    run_folder,
    runs,
)
from qtool.comparison.change_points import ChangeRecorder
from qtool.console import say
from qtool.conversion.to_integer import convert as convert_model
from qtool.conversion.to_integer import round_biases
from qtool.errors import ExportError, InputError, TrainingError
from qtool.export.onnx_qdq import export_onnx
from qtool.export.parity import hint_for
from qtool.export.qdq_modules import Ceil
from qtool.export.targets import TARGETS
from qtool.integer.file import save_integer
from qtool.quantizers.prepare import plan
from qtool.recipe import Recipe
from qtool.tables import show_plan
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
    recipe = assembly.load_checked(recipe_path, assignments)
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
    chosen = assembly.pick_device(device)
    runs.open_run(recipe, folder, resume=resume)
    if (finished := runs.finished_summary(folder)) is not None:
        say(f"{folder} is finished already" + (", so nothing is measured" if profile else ""))
        return finished
    say(f"training {folder} on {chosen} ({assembly.device_name(chosen)})")
    for note in recipe.quantization.notes():
        say(f"note: {note}")
    if chosen.type == "cpu":
        keep_freed_memory()
    loaders = assembly.make_data(recipe, chosen)
    trainer, architecture = runs.start_or_resume(recipe, loaders, folder, chosen)
    trainer.profile = StepProfile(chosen) if profile else None
    if with_plan:
        show_plan(plan(trainer.model))
    runs.keep_recipe(recipe, folder, "the resolved recipe of this run")
    runs.write_environment(recipe, folder, chosen)
    runs.summarize(folder, "running", trainer.model, trainer.history)
    if records:
        trainer.watcher = ChangeRecorder(trainer.model, folder, len(trainer.history))
    every = recipe.training.checkpoint_every
    if trainer.history and (folder / run_folder.INTEGER).is_file():
        say("note: what was converted and exported of this run before is of an earlier epoch")

    def after_epoch(line: dict[str, Any]) -> None:
        run_folder.write_metrics(folder, trainer.history)
        if line["epoch"] % every == 0 or line["epoch"] == trainer.epochs:
            state = checkpoint.take(trainer.model, trainer.optimizer, trainer.history, architecture)
            checkpoint.save(state, folder / run_folder.CHECKPOINT)
        runs.summarize(folder, "running", trainer.model, trainer.history)
        say_epoch(line, trainer.epochs)

    def finish(model: nn.Module) -> None:
        assembly.reestimate_batch_norm_on(model, recipe, loaders)
        round_biases(model)

    try:
        trainer.fit(after_epoch, finish)
    except TrainingError as error:
        runs.summarize(folder, "failed", trainer.model, trainer.history, error=str(error))
        raise
    except KeyboardInterrupt:
        recipe_file = folder / run_folder.RECIPE
        say(f"stopped; go on with: qtool train {recipe_file} --run-dir {folder} --resume")
        raise
    measured = {"profile": trainer.profile.report()} if trainer.profile else {}
    return runs.summarize(folder, "finished", trainer.model, trainer.history, **measured)


def convert_to_straight_through(
    source: Path, output: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Run with a custom estimator -> the straight-through run it is; return convert.json."""
    return equivalent_run.convert_run(source, output, assembly.pick_device(device))


def convert(source: Path, output: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """Run or recipe -> integer model; return what convert.json says.

    A run gives its trained weights; a recipe its given weights, calibrated and not trained.
    """
    chosen, float_accuracy = assembly.pick_device(device), None
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a run folder or a recipe")
    if output is not None:
        run_folder.refuse_unless_writable(output, "--output names a .safetensors file")
    if source.is_dir():
        path = output or source / run_folder.INTEGER
        recipe, model, loaders, architecture = runs.load_run(source, chosen)
    else:
        recipe = assembly.load_checked(source)
        path = output or runs.folder_for_untrained(recipe, source) / run_folder.INTEGER
        model, loaders, architecture, float_accuracy = runs.calibrated(recipe, chosen)
        show_plan(plan(model))
    proof = (images for images, _ in islice(loaders.validation.batches(0), PROOF_BATCHES))
    integer = convert_model(model, proof)
    report = runs.conversion_report(recipe, model, integer, loaders)
    path.parent.mkdir(parents=True, exist_ok=True)
    if output is None and not source.is_dir():
        runs.keep_recipe(recipe, path.parent, "the recipe of this conversion")
    save_integer(integer, path, {"recipe": recipe.as_dict(), "architecture": architecture})
    report |= {"integer_model": str(path), "validation_accuracy_float": float_accuracy}
    run_folder.write_json(run_folder.report_beside(path, run_folder.CONVERT), report)
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
    path = output or (source / run_folder.ONNX if source.is_dir() else source.with_suffix(".onnx"))
    run_folder.refuse_unless_writable(path, "--output names an .onnx file")
    integer_path = _up_to_date_integer(source) if source.is_dir() else source
    recipe, integer, architecture = runs.open_integer(integer_path)
    loaders = assembly.make_data(recipe, torch.device("cpu"))
    images = assembly.first_images(loaders)
    metadata = {"recipe": recipe.as_dict(), "architecture": architecture}
    with run_folder.unproven(path) as trial:
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
        report = runs.export_report(
            recipe, integer, architecture, loaders, trial, described, images[:1]
        )
        report |= {"file": str(path), "target": target}
        beside = run_folder.report_beside(path, run_folder.EXPORT)
        run_folder.write_json(source / run_folder.EXPORT if source.is_dir() else beside, report)
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
    run_folder.refuse_unless_run(folder)
    if not run_folder.integer_is_fresh(folder):
        say(f"converting {folder} first")
        convert(folder)
    return folder / run_folder.INTEGER


def inspect(source: Path) -> dict[str, Any]:
    """Recipe, run, integer model or ONNX file -> what it holds."""
    return inspection.inspect(source)


def inspect_estimators(output: Path | None = None) -> dict[str, Any]:
    """Every gradient estimator -> its formula, its class and, in a page or a folder, pictures."""
    return gallery.inspect_estimators(output)

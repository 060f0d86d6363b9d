"""Runs: opened, started or resumed, loaded again, and summed up."""

from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import nn

from qtool.console import say
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.evaluation import evaluate
from qtool.files.reading import intact, read_json
from qtool.files.whole import refuse_unless_makeable, write_atomically, write_json
from qtool.integer.file import load_integer, read_about
from qtool.models.vision import rebuild_model
from qtool.quantizers.layers import set_progress
from qtool.quantizers.prepare import mean_weight_bits
from qtool.recipe.file import load_recipe, read_recipe_file, write_recipe
from qtool.recipe.recipe import Recipe
from qtool.runs import build, checkpoint
from qtool.runs.folder import (
    CHECKPOINT,
    ENVIRONMENT,
    RECIPE,
    SUMMARY,
    is_free,
    is_run_folder,
    refuse_unless_run,
)
from qtool.settings.section import check
from qtool.settings.user_estimators import source_hashes, source_of, used_by
from qtool.training.loop import Trainer

SUMMARIZED = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")
ALSO_SHOWN = ("run", "epochs", "seconds", "parameters", "weight_bits_mean")
NOT_OF_THIS_RUN = "damaged, or of another run"
Architecture = dict[str, Any]  # what rebuild_model needs


def open_run(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Check that a run can be in the folder: that it is free, or holds this very run.

    Nothing is made yet, so that a mistake found later leaves no empty folder behind.

    Raises:
        InputError: If it holds anything else, or `resume` is missing.
    """
    refuse_unless_makeable(folder)
    if is_free(folder):
        return
    if not is_run_folder(folder):
        raise InputError(f"{folder}: not empty, and not a run; choose another --run-dir")
    path = folder / RECIPE
    kept = check(Recipe, read_recipe_file(path), str(path))  # its estimators stay unloaded
    if kept.identity() != recipe.identity():
        different = ", ".join(_differences(kept.identity(), recipe.identity()))
        raise InputError(f"{folder}: holds a different run ({different}); choose another --run-dir")
    _refuse_changed_sources(recipe, folder)
    if not resume:
        raise InputError(
            f"{folder}: holds this run already; add --resume to go on with it or to see its "
            f"summary, or choose another --run-dir"
        )


def write_environment(recipe: Recipe, folder: Path, device: torch.device) -> None:
    """Write what a run's numbers depend on beside its recipe."""
    hashes = source_hashes(recipe.as_dict()["quantization"])
    found = build.environment(device) | {"estimator_sources": hashes}
    write_json(folder / ENVIRONMENT, found)


def keep_recipe(recipe: Recipe, folder: Path, comment: str) -> None:
    """Write the resolved recipe into a folder, and the user's own estimators beside it."""
    for _, name, _ in used_by(recipe.as_dict()["quantization"]):
        source = source_of(name)
        if source.parent != folder.resolve():
            write_atomically(folder / source.name, partial(copyfile, source))
    write_recipe(recipe, folder / RECIPE, comment)


def _refuse_changed_sources(recipe: Recipe, folder: Path) -> None:
    """Check that the user's own estimators are those that a run began with.

    Raises:
        InputError: If a file has changed since the first epoch was done.
    """
    path = folder / ENVIRONMENT
    if not path.is_file() or not (folder / CHECKPOINT).is_file():
        return
    kept = read_json(path).get("estimator_sources")
    for file, digest in source_hashes(recipe.as_dict()["quantization"]).items():
        if not isinstance(kept, dict) or kept.get(file) != digest:
            raise InputError(
                f"{folder}: holds a run with another {file}, of which it keeps a copy; choose "
                f"another --run-dir for what the file says now"
            )


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Return the dotted keys whose values differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        inner = (_differences(old.get(k), new.get(k), f"{place}.{k}".strip(".")) for k in keys)
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{place}: {old} there, {new} here"]


def start_or_resume(
    recipe: Recipe, loaders: Loaders, folder: Path, device: torch.device
) -> tuple[Trainer, Architecture]:
    """Return the trainer, at the beginning or at the checkpoint, and the network's architecture."""
    path, example = folder / CHECKPOINT, build.first_images(loaders)
    if path.is_file():
        state = checkpoint.load(path, device)
        with intact(path, NOT_OF_THIS_RUN):
            network = rebuild_model(recipe.model.name, state.architecture)
        model = build.prepare_network(recipe, network, example)
        trainer = build.make_trainer(recipe, model, loaders, device)
        with intact(path, NOT_OF_THIS_RUN):
            state.restore(trainer.model, trainer.optimizer)
        trainer.history = state.history
        say(f"going on after epoch {len(state.history)}")
        return trainer, state.architecture
    built = build.make_network(recipe, loaders)
    model = build.prepare_network(recipe, built.model, example).train()
    build.calibrate_on(model, recipe, loaders)
    return build.make_trainer(recipe, model, loaders, device), built.architecture


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, else None."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary = read_json(path)
    if summary.get("status") != "finished":
        return None
    if missing := [key for key in (*SUMMARIZED, *ALSO_SHOWN) if key not in summary]:
        raise InputError(f"{path}: damaged, it has no {', '.join(missing)}")
    return summary


def summarize(
    folder: Path, status: str, model: nn.Module, history: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """Write summary.json and return it."""
    last = history[-1] if history else {}
    summary = {
        "status": status,
        "run": str(folder),
        "epochs": len(history),
        "seconds": round(sum(line["seconds"] for line in history), 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bits_mean": round(mean_weight_bits(model), 4),
        **{key: last.get(key) for key in SUMMARIZED},
        **more,
    }
    write_json(folder / SUMMARY, summary)
    return summary


def load_run(folder: Path, device: torch.device) -> tuple[Recipe, nn.Module, Loaders, Architecture]:
    """Return a run's recipe, its trained model, its data and its architecture.

    Raises:
        InputError: If the folder holds no run, or its checkpoint cannot be read.
    """
    refuse_unless_run(folder)
    recipe = load_recipe(folder / RECIPE)
    state = checkpoint.load(folder / CHECKPOINT, device)
    loaders = build.make_data(recipe, device)
    path = folder / CHECKPOINT
    with intact(path, NOT_OF_THIS_RUN):
        network = rebuild_model(recipe.model.name, state.architecture)
    model = build.prepare_network(recipe, network, build.first_images(loaders))
    with intact(path, NOT_OF_THIS_RUN):
        model.load_state_dict(state.model)
    done = len(state.history)
    if done < recipe.training.epochs:
        say(f"{folder}: trained for {done} of {recipe.training.epochs} epochs so far")
    set_progress(model, done / recipe.training.epochs)
    return recipe, model.eval(), loaders, state.architecture


def calibrated(
    recipe: Recipe, device: torch.device
) -> tuple[nn.Module, Loaders, Architecture, float | None]:
    """Return a recipe's network with its given weights, quantized without training.

    The last item is the accuracy of the float network, None where labels are no classes.
    """
    loaders = build.make_data(recipe, device)
    if recipe.model.weights == "none":
        say("note: model.weights is none, so random weights are quantized")
    built = build.make_network(recipe, loaders)
    example = build.first_images(loaders)
    network = built.model.eval().to(device)
    score = evaluate(network, loaders.validation.batches(0), build.make_loss(recipe))
    model = build.prepare_network(recipe, network, example)
    build.calibrate_on(model, recipe, loaders)
    set_progress(model, 1.0)
    return model, loaders, built.architecture, score.accuracy


def open_integer(path: Path) -> tuple[Recipe, nn.Module, Architecture]:
    """Return the recipe, the integer model, on the CPU, and the architecture of a file.

    Raises:
        InputError: If the file is missing, damaged, or not an integer model.
    """
    about, _ = read_about(path)
    with intact(path, "its metadata is damaged"):
        recipe = check(Recipe, about["recipe"], f"{path}, its recipe")
        network = rebuild_model(recipe.model.name, about["architecture"])
        return recipe, load_integer(path, network), about["architecture"]


def folder_for_untrained(recipe: Recipe, source: Path) -> Path:
    """Return the folder where a recipe that is converted without training goes.

    Raises:
        InputError: If it holds anything but the same conversion.
    """
    folder = Path("runs") / source.stem
    if (folder / CHECKPOINT).exists():
        raise InputError(f"{folder}: holds a trained run; convert that folder, or give --output")
    open_run(recipe, folder, resume=True)
    return folder

"""A run is begun: whether it may be in its folder, and what is written there beside its numbers."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from qtool.console import warn
from qtool.data.fingerprint import Fingerprint, changes, fingerprint
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.files.json_data import read_json
from qtool.files.whole import write_atomically, write_json
from qtool.quantizers.plan import mean_weight_bits
from qtool.recipe.file import WEIGHTS, write_recipe
from qtool.recipe.parts import sources, sources_of_estimators
from qtool.recipe.places import at, put
from qtool.recipe.plain import read_recipe_file
from qtool.recipe.recipe import Recipe
from qtool.reports.health import Finding
from qtool.reports.results import EpochLine, Profile, Summary
from qtool.runs.kept.folder import PARTS, RunFolder
from qtool.runs.machine import command_given, environment
from qtool.settings.section import check

DATA = "data"  # in environment.json: what they were
EPOCHS = "training.epochs"


def open_run(recipe: Recipe, folder: RunFolder, *, resume: bool, longer: bool = False) -> None:
    """Check that a run can be in the folder: that it is free, or holds this very run.

    With `longer`, a finished one may go on for more epochs.

    Nothing is made yet, so that a mistake found later leaves no empty folder behind.

    Raises:
        InputError: If it holds anything else, or `resume` is missing.
    """
    folder.refuse_unless_makeable()
    if folder.is_free():
        return
    if not folder.holds_run():
        raise InputError(f"{folder}: not empty, and not a run; choose another {folder.option}")
    kept = _kept(folder)
    old, new = kept.identity(), recipe.identity()
    for place in WEIGHTS:
        before, now = at(old, place), at(new, place)
        if isinstance(before, str) and isinstance(now, str) and _is_found_again(before, now):
            old = put(old, {place: now})
    if old != new and not (longer and _goes_on(old, new, folder)):
        different = ", ".join(_differences(old, new))
        raise InputError(
            f"{folder}: holds a different run ({different}); choose another {folder.option}"
        )
    _refuse_changed_sources(recipe, folder)
    if not resume:
        raise InputError(
            f"{folder}: holds this run already; add --resume to go on with it or to see its "
            f"summary, or choose another {folder.option}"
        )


def as_begun(recipe: Recipe, folder: RunFolder) -> Recipe:
    """Return the recipe of a run that a folder may hold already, with the ranges it began with.

    A range that is not said is another than it was to earlier versions, which wrote it out.
    """
    if not folder.holds_run():
        return recipe
    return recipe.model_copy(update={"quantization": _kept(folder).quantization})


def _kept(folder: RunFolder) -> Recipe:
    """Return the recipe in a run's folder; its estimators stay unloaded."""
    return check(Recipe, read_recipe_file(folder.recipe), str(folder.recipe))


def _goes_on(old: dict[str, object], new: dict[str, object], folder: RunFolder) -> bool:
    """Tell whether a folder's run is finished, and a recipe is that of it but for more epochs."""
    finished, epochs = folder.finished_summary(), at(new, EPOCHS)
    if finished is None or not isinstance(epochs, int) or epochs <= finished.epochs:
        return False
    return put(old, {EPOCHS: epochs}) == new


def folder_for_untrained(recipe: Recipe, source: Path) -> RunFolder:
    """Return the folder where a recipe that is converted without training goes.

    Raises:
        InputError: If it holds anything but the same conversion.
    """
    folder = RunFolder(Path("runs") / source.stem)
    if folder.checkpoint.exists():
        raise InputError(f"{folder}: holds a trained run; convert that folder, or give --output")
    open_run(recipe, folder, resume=True)
    return folder


def keep_recipe(recipe: Recipe, folder: RunFolder, comment: str) -> None:
    """Write the resolved recipe into a folder, and then the user's own files beside it.

    A folder that has anything but a recipe would be no run, and not free for one either.
    """
    write_recipe(recipe, folder.recipe, comment)
    for source in sources(recipe.as_dict()).values():
        path = source.path
        if path is not None and source.is_file and path.parent != folder.path.resolve():
            write_atomically(folder.path / path.name, partial(_write, source.content))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def write_environment(
    recipe: Recipe,
    folder: RunFolder,
    device: torch.device,
    data: Loaders | None = None,
    **more: str,
) -> None:
    """Write what a run's numbers depend on beside its recipe, and what its data are.

    Args:
        recipe: of the run.
        folder: where it is written.
        device: that the run computes on.
        data: that it trains on.
        **more: digests of whatever else they depend on.
    """
    data_of_recipe = recipe.as_dict()
    of_estimators = sources_of_estimators(data_of_recipe)
    said = environment(device) | {"estimator_sources": of_estimators}
    if data is not None:
        said[DATA] = fingerprint(data).to_json()
    if command := command_given():
        said["command"] = command
    others = {
        k: v for k, v in sources(data_of_recipe).items() if not (v.is_file and k in of_estimators)
    }
    if others:
        said[PARTS] = {
            k: {"sha256": v.digest, "version": v.version, "folder": str(v.folder or "")}
            for k, v in others.items()
        }
    write_json(folder.environment, said | more)


def say_changed_data(folder: RunFolder, data: Loaders) -> None:
    """Say what of the data has changed since a run last went on with them.

    Raises:
        InputError: If what the folder says of them is damaged.
    """
    if not folder.environment.is_file():
        return
    kept = read_json(folder.environment).get(DATA)
    if kept is None:  # of before it was kept
        return
    for what in changes(Fingerprint.of(kept, folder.environment), fingerprint(data)):
        warn(f"{folder}: the data have changed: {what}")


def summarize(
    folder: RunFolder,
    status: Literal["running", "finished", "failed"],
    model: nn.Module,
    history: Sequence[EpochLine],
    **more: Profile | str | float | list[Finding] | None,
) -> Summary:
    """Write summary.json and return it.

    Args:
        folder: of the run.
        status: how far it is.
        model: prepared.
        history: of the epochs that are done.
        **more: a `profile`, an `error`, `health`, or whether it was `stopped_early`.
    """
    last = history[-1] if history else None
    said: dict[str, object] = {
        "status": status,
        "run": str(folder),
        "epochs": len(history),
        "seconds": round(sum(line.seconds for line in history), 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bits_mean": round(mean_weight_bits(model), 4),
        "validation_accuracy": last and last.validation_accuracy,
        "validation_loss": last and last.validation_loss,
        "train_accuracy": last and last.train_accuracy,
        "train_loss": last and last.train_loss,
    }
    if last is not None and last.holdout_loss is not None:
        more |= {"holdout_accuracy": last.holdout_accuracy, "holdout_loss": last.holdout_loss}
    for key in ("validation_top5", "validation_f1", "holdout_f1"):
        if (figure := getattr(last, key, None)) is not None:
            more[key] = figure
    summary = Summary.model_validate(said | more)
    summary.write(folder.summary)
    return summary


def _refuse_changed_sources(recipe: Recipe, folder: RunFolder) -> None:
    """Check that the user's own parts are those that a run began with.

    Raises:
        InputError: If a file or module has changed since the first epoch was done.
    """
    if not folder.environment.is_file() or not folder.checkpoint.is_file():
        return
    kept = folder.kept_digests() or {}
    for label, source in sources(recipe.as_dict()).items():
        if kept.get(label) != source.digest:
            copy = ", of which it keeps a copy" if source.is_file else ""
            raise InputError(
                f"{folder}: holds a run with another {label}{copy}; choose another "
                f"{folder.option} for what the {'file' if source.is_file else 'module'} says now"
            )


def _is_found_again(old: str, new: str) -> bool:
    """Tell whether a relative path of older runs may be what a recipe's absolute one is now."""
    if Path(old).is_absolute() or not Path(new).is_absolute():
        return False
    parts = Path(old).parts
    return Path(new).parts[-len(parts) :] == parts


def _differences(old: object, new: object, place: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}".strip("."))
    elif old != new:
        yield f"{place}: {old} there, {new} here"

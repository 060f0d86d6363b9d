"""What a trial's folder keeps: damaged files made anew from sound ones, checkpoints pruned."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from qtool.console import warn
from qtool.errors import InputError, QtoolError
from qtool.files.checksums import NewestAndPrevious
from qtool.files.json_data import read_json
from qtool.files.lock import only_writer
from qtool.recipe.plain import read_recipe_file
from qtool.reports.results import Summary
from qtool.runs.kept import checkpoint
from qtool.runs.kept.changes import read_record
from qtool.runs.kept.folder import RunFolder
from qtool.runs.kept.sound import checkpoint_to_go_on_from

Keep = Literal["all", "last", "none"]
KEEPS: tuple[Keep, ...] = get_args(Keep)
CPU = torch.device("cpu")


def mend(folder: RunFolder) -> None:
    """Put a trial's damaged reports aside where its checkpoint, which is sound, makes them anew.

    Raises:
        InputError: If another process writes in the folder.
    """
    damaged = damaged_reports(folder)
    if not damaged or not folder.holds_run():
        return
    sound = _sound_checkpoint(folder)
    if sound is None:
        return
    with only_writer(folder.path):
        if folder.metrics in damaged:
            folder.write_metrics(checkpoint.load(sound, CPU).history)
            damaged.remove(folder.metrics)
            warn(f"{folder.metrics}: damaged; written again from {sound.name}")
        if folder.environment in damaged:
            folder.summary.unlink(missing_ok=True)  # else nothing would be written again
        for path in damaged:
            aside = path.with_name(f"{path.name}.damaged")
            if path.exists():
                path.replace(aside)
            warn(f"{path}: damaged; put aside as {aside.name}, and made anew from {sound.name}")


def damage_of(folder: RunFolder, *, records: bool = False) -> str:
    """Return what of a trial's folder is damaged, "" where nothing is.

    Args:
        folder: of the trial.
        records: what the weights' codes did belongs to it.
    """
    if folder.checkpoint.is_file() and not folder.holds_run():
        return f"{folder.recipe}: missing"
    if folder.holds_run() and not _can(lambda: read_recipe_file(folder.recipe)):
        return f"{folder.recipe}: damaged"
    for path in damaged_reports(folder):
        return f"{path}: damaged"
    if not _can(lambda: checkpoint_to_go_on_from(folder)):
        return f"{folder.checkpoint}: damaged"
    summary = folder.finished_summary()
    if records and summary is not None and not _can(lambda: read_record(folder, summary.epochs)):
        return f"{folder.changes}: damaged"
    return ""


def prune(folder: RunFolder, keep: Keep) -> None:
    """Remove the checkpoints of a finished trial that need not be kept; it stays a finished one.

    Raises:
        InputError: If another process writes in the folder.
    """
    pair = NewestAndPrevious(folder.checkpoint)
    left_out = {
        "all": [],
        "last": [pair.previous, folder.best],
        "none": [pair.previous, pair.newest, pair.digests, folder.best],
    }[keep]
    if any(path.exists() for path in left_out):
        with only_writer(folder.path):
            for path in left_out:
                path.unlink(missing_ok=True)


def damaged_reports(folder: RunFolder) -> list[Path]:
    """Return the files that can be made anew from a checkpoint, and cannot be read."""
    readers: dict[Path, Callable[[], object]] = {
        folder.summary: lambda: Summary.read(folder.summary),
        folder.environment: lambda: read_json(folder.environment),
        folder.metrics: folder.history,
    }
    return [path for path, read in readers.items() if path.is_file() and not _can(read)]


def _sound_checkpoint(folder: RunFolder) -> Path | None:
    """Return the checkpoint that a trial goes on from; None where there is none, or none sound."""
    try:
        return checkpoint_to_go_on_from(folder)[0]
    except InputError:
        return None


def _can(read: Callable[[], object]) -> bool:
    """Tell whether a file can be read."""
    try:
        read()
    except QtoolError:
        return False
    return True

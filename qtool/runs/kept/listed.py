"""The runs in a folder and in those below it, by what their summary.json says; loads no torch."""

import os
from datetime import datetime
from pathlib import Path

from qtool.errors import InputError
from qtool.files.lock import is_written
from qtool.reports.listings import ListedRun, RunListing
from qtool.reports.results import Summary
from qtool.runs.kept.folder import RunFolder


def runs_in(folder: Path) -> RunListing:
    """Return every run in a folder and in those below it, also the trials of comparisons.

    Raises:
        InputError: If there is no such folder.
    """
    if not folder.is_dir():
        what = "no folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; give the folder that your runs lie in, such as runs")
    found = [RunFolder(Path(place)) for place, _, files in os.walk(folder) if _is_run(files)]
    rows = [_row(each) for each in sorted(found, key=lambda each: each.path)]
    return RunListing(kind="runs", folder=str(folder), runs=rows)


def _is_run(files: list[str]) -> bool:
    names = RunFolder(Path())
    return {names.summary.name, names.recipe.name} <= set(files)


def _row(folder: RunFolder) -> ListedRun:
    written = datetime.fromtimestamp(folder.summary.stat().st_mtime).astimezone()
    date = written.isoformat(timespec="seconds")
    try:
        said = Summary.read(folder.summary)
    except InputError:
        return ListedRun(run=str(folder), status="damaged", date=date)
    stopped = said.status == "running" and not is_written(folder.path)
    return ListedRun(
        run=str(folder),
        status="stopped" if stopped else said.status,
        validation_accuracy=said.validation_accuracy,
        weight_bits_mean=said.weight_bits_mean,
        epochs=said.epochs,
        date=date,
    )

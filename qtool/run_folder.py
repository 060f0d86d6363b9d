"""The names of everything a run writes, and how it is written: whole files or nothing."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtool.errors import InputError

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
SUMMARY = "summary.json"
INTEGER = "integer.safetensors"
CONVERT = "convert.json"
ONNX = "model.onnx"
EXPORT = "export.json"
COMPARISON = "comparison.json"
INITIAL = "initial.safetensors"
CHANGES = "changes"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name beside `path`, then put the file in place in one move.

    A kill at any moment leaves the old file or the new one, never half of one.

    Raises:
        InputError: If the file cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def refuse_unless_makeable(folder: Path) -> None:
    """Check that a folder is there or can be made, without making it.

    Raises:
        InputError: If a file is in its way, its name is too long, or its parent takes no files.
    """
    there = folder
    try:
        while not there.exists():
            there = there.parent
    except OSError as error:
        raise InputError(f"{folder}: not the name of a folder: {error.strerror}") from error
    if not there.is_dir():
        raise InputError(f"{folder}: {there} is a file; give the name of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: nothing may be written into {there}; choose another folder")


def refuse_unless_writable(path: Path, meant: str) -> None:
    """Check that a file can be written at `path`, before any work is done for it.

    Raises:
        InputError: If it is a folder, or nothing may be written there; says what is `meant`.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: a folder; {meant}")
    except OSError as error:
        raise InputError(f"{path}: not the name of a file: {error.strerror}") from error
    refuse_unless_makeable(path.parent)


@contextmanager
def intact(path: Path, what: str) -> Iterator[None]:
    """Turn the errors that wrong contents of a file cause into one that names the file.

    Args:
        path: of the file whose contents are used inside.
        what: goes wrong, such as "its metadata is damaged".

    Raises:
        InputError: In place of what Python or torch say of the contents.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        else:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(f"{path}: {what}: {reason}") from error


@contextmanager
def unproven(path: Path) -> Iterator[Path]:
    """Lend a name beside `path` for a file that must prove itself before it takes that place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_name(f".{path.name}.unproven.onnx")
    try:
        yield trial
    finally:
        trial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file in one move."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, one line for each epoch."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
    write_text(folder / METRICS, text)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that a run wrote.

    Raises:
        InputError: If it is missing or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no JSON object")
    return data


def is_free(path: Path) -> bool:
    """Tell whether a folder is absent or empty, but for what a killed write left."""
    return not path.exists() or all(child.match(".*.tmp") for child in path.iterdir())


def is_run_folder(path: Path) -> bool:
    """Tell whether a folder was made by `qtool train` or `qtool convert`."""
    return path.is_dir() and (path / RECIPE).is_file()


def refuse_unless_run(path: Path) -> None:
    """Check that a folder was made by `qtool train` or `qtool convert`.

    Raises:
        InputError: If it was not.
    """
    if not is_run_folder(path):
        raise InputError(f"{path}: not a run folder, it has no {RECIPE}")


def integer_is_fresh(folder: Path) -> bool:
    """Tell whether a run's integer model is there, and not older than its checkpoint."""
    integer, weights = folder / INTEGER, folder / CHECKPOINT
    if not integer.is_file():
        return False
    return not weights.is_file() or integer.stat().st_mtime >= weights.stat().st_mtime


def report_beside(path: Path, report: str) -> Path:
    """Return where the report on a file goes, so that two files in a folder keep two reports."""
    usual = {CONVERT: INTEGER, EXPORT: ONNX}[report]
    return path.with_name(report if path.name == usual else f"{path.stem}.{report}")

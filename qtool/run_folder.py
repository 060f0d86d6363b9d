"""The names of everything a run writes, and how it is written: whole files or nothing."""

import json
import os
from collections.abc import Callable
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


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name beside `path`, then put the file in place in one move.

    A kill at any moment leaves the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file in one move."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, one line for each epoch."""
    text = "".join(json.dumps(line) + "\n" for line in history)
    write_atomically(
        folder / METRICS, lambda temporary: temporary.write_text(text, encoding="utf-8")
    )


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


def is_run_folder(path: Path) -> bool:
    """Tell whether a folder was made by `qtool train` or `qtool convert`."""
    return path.is_dir() and (path / RECIPE).is_file()


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

"""The names of everything a run writes, and how it is written: whole files or nothing."""

import json
from pathlib import Path
from typing import Any

from qtool.errors import InputError
from qtool.files.whole import write_text

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


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, one line for each epoch."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
    write_text(folder / METRICS, text)


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

"""Finished runs and exported files as they stand, side by side."""

from pathlib import Path

import torch

from qtool.errors import InputError
from qtool.export import annotation, gate, measure
from qtool.files.reading import intact, read_json
from qtool.inspection.onnx import Inspection, read_onnx
from qtool.recipe.recipe import Recipe
from qtool.runs import build
from qtool.runs.folder import (
    CONVERT,
    integer_is_fresh,
    refuse_unless_run,
)
from qtool.runs.run import finished_summary
from qtool.settings.section import check


def arm_of(source: Path) -> Inspection:
    """Return a finished run or an ONNX file as one row of a comparison.

    Raises:
        InputError: If it is neither.
    """
    if source.is_dir():
        return _run_arm(source)
    if source.suffix == ".onnx":
        return _onnx_arm(source)
    raise InputError(f"{source}: neither a run folder nor an .onnx file")


def verdict_on(arms: list[Inspection]) -> str:
    """Say which of several single runs did best, and how little that means."""
    known = [arm for arm in arms if arm["mean"] is not None]
    if not known:
        return "No accuracy is known."
    best = max(arm["mean"] for arm in known)
    first = [arm["name"] for arm in known if arm["mean"] == best]
    if len(first) > 1:
        return f"{' and '.join(first)} are equally accurate."
    return f"The highest accuracy is {first[0]}'s, but one run each cannot tell merit from chance."


def _run_arm(folder: Path) -> Inspection:
    refuse_unless_run(folder)
    summary = finished_summary(folder)
    if summary is None:
        raise InputError(f"{folder}: not finished; go on with qtool train --resume")
    size = None
    if (folder / CONVERT).is_file() and integer_is_fresh(folder):
        size = read_json(folder / CONVERT).get("integer_bytes")
    return _arm(folder, summary["validation_accuracy"], summary["weight_bits_mean"], size, None)


def _onnx_arm(path: Path) -> Inspection:
    """Measure a file: its accuracy on the validation set of the recipe that it names."""
    said = annotation.read_metadata(read_onnx(path))
    with intact(path, "what qtool wrote into it is damaged"):
        bits = [
            (layer["weight_bits"] or 32, torch.Size(layer["shape"]).numel())
            for layer in said.get("layers", [])
        ]
        weights = sum(count for _, count in bits)
        mean_bits = sum(width * count for width, count in bits) / weights if weights else None
    accuracy = latency = None
    if "recipe" in said:
        recipe = check(Recipe, said["recipe"], f"{path}, its recipe")
        loaders = build.make_data(recipe, torch.device("cpu"))
        accuracy = gate.accuracy(path, loaders.validation.batches(0))
        latency = measure.latencies([path], build.first_images(loaders)[:1])[0]
    return _arm(path, accuracy, mean_bits, path.stat().st_size, latency)


def _arm(
    source: Path,
    accuracy: float | None,
    bits: float | None,
    size: int | None,
    latency: float | None,
) -> Inspection:
    return {
        "name": str(source),
        "values": [accuracy],
        "mean": accuracy,
        "std": None,
        "failed": 0,
        "weight_bits_mean": bits,
        "bytes": size,
        "latency_ms": latency,
    }

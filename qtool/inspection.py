"""What a recipe, run folder, integer model or ONNX file holds."""

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from qtool import assembly, checkpoint, run_folder, runs
from qtool.errors import InputError
from qtool.export import annotation, parity
from qtool.integer.layers import LayerSpec, converted_state, integer_layers
from qtool.models.two_layers import shape_of_input
from qtool.models.vision import rebuild_model
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import plan, prepare
from qtool.recipe import Recipe
from qtool.recipe_file import load_recipe
from qtool.sections import check

Inspection = dict[str, Any]


def inspect(source: Path) -> Inspection:
    """Return what there is to say of a file or folder, by what it is.

    Raises:
        InputError: If it is missing, or none of the kinds that qtool knows.
    """
    if source.is_dir():
        return _inspect_run(source)
    if source.suffix == ".onnx":
        return _inspect_onnx(source)
    if source.suffix == ".safetensors":
        return _inspect_integer(source)
    return _inspect_recipe(source)


def _inspect_recipe(path: Path) -> Inspection:
    """Plan a recipe without data, weights or downloads; random images decide the grids."""
    recipe = load_recipe(path)
    built = assembly.make_network_without_data(recipe)
    model = _prepared(recipe, built.model, built.architecture)
    return {
        "source": str(path),
        "kind": "recipe",
        "model": recipe.model.name,
        "data": recipe.data.name,
        **_sizes(built.architecture),
        "parameters": sum(p.numel() for p in built.model.parameters()),
        **_planned(model),
    }


def _prepared(recipe: Recipe, network: nn.Module, architecture: dict[str, Any]) -> nn.Module:
    shape = shape_of_input(architecture)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return prepare(network, recipe.quantization, images, search=False)


def _sizes(architecture: dict[str, Any]) -> Inspection:
    return {"image_size": architecture["image_size"], "classes": architecture["classes"]}


def _planned(model: nn.Module) -> Inspection:
    """Return every layer of a prepared model, and what stays float."""
    layers, rows = [], plan(model)
    for row in rows:
        if row.why:
            continue
        shape = "x".join(map(str, row.shape))
        layers.append(
            {
                "layer": row.name,
                "weight": shape,
                "weights": row.weights,
                "input": row.activations,
                "how weights": row.weights_how,
                "how input": row.activations_how,
            }
        )
    return {"layers": layers, "left_float": {r.name: r.why for r in rows if r.why}}


def _inspect_run(folder: Path) -> Inspection:
    run_folder.refuse_unless_run(folder)
    recipe = load_recipe(folder / run_folder.RECIPE)
    found: Inspection = {"source": str(folder), "kind": "run", "model": recipe.model.name}
    if (folder / run_folder.SUMMARY).is_file():
        found |= run_folder.read_json(folder / run_folder.SUMMARY)
    if not (folder / run_folder.CHECKPOINT).is_file():
        return found
    path = folder / run_folder.CHECKPOINT
    state = checkpoint.load(path, torch.device("cpu"))
    with run_folder.intact(path, runs.NOT_OF_THIS_RUN):
        network = rebuild_model(recipe.model.name, state.architecture)
        model = _prepared(recipe, network, state.architecture)
        model.load_state_dict(state.model)
    found |= _planned(model)
    modules = quant_layers(model)
    for row in found["layers"]:
        layer = modules[row["layer"]]
        for key, quantizer in (
            ("weight scale", layer.weight_quantizer),
            ("input scale", layer.quantizer_of_input),
        ):
            row[key] = "" if quantizer is None else _scale_range(quantizer.scale.detach())
    return found


def _scale_range(scale: torch.Tensor) -> str:
    low, high = float(scale.min()), float(scale.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _inspect_integer(path: Path) -> Inspection:
    recipe, integer, architecture = runs.open_integer(path)
    state, modules, layers = converted_state(integer), integer_layers(integer), []
    with run_folder.intact(path, "its metadata is damaged"):
        for spec in state.layers:
            layer = modules[spec.name]
            scale = "" if layer.weight_scale is None else _scale_range(layer.weight_scale)
            layers.append(_layer_row(spec) | {"weight scale": scale, "why unfused": spec.unfused})
    return {
        "source": str(path),
        "kind": "integer model",
        "model": recipe.model.name,
        **_sizes(architecture),
        "file_bytes": path.stat().st_size,
        "layers": layers,
        "left_float": state.left_float,
        "notes": state.notes,
    }


def _layer_row(spec: LayerSpec) -> Inspection:
    return {
        "layer": spec.name,
        "weight": "x".join(map(str, spec.shape)),
        "weight bits": spec.weight_bits or 32,
        "grid": spec.weight_grid or "float",
        "input bits": spec.input_bits or 32,
        "bytes": -(-spec.weights * (spec.weight_bits or 32) // 8),
    }


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return a model that ONNX accepts.

    Raises:
        InputError: If the file is missing or no valid ONNX model.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an ONNX file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not an ONNX model: {reason}") from error
    return model


def _inspect_onnx(path: Path) -> Inspection:
    model = read_onnx(path)
    said = annotation.read_metadata(model)
    datatypes = {a.tensor: a.datatype for a in annotation.read_annotations(model.graph)}
    with run_folder.intact(path, "what qtool wrote into it is damaged"):
        layers = [
            {
                "layer": layer["name"],
                "weight": "x".join(map(str, layer["shape"])),
                "weight bits": layer["weight_bits"] or 32,
                "input bits": layer["input_bits"] or 32,
                "bytes": layer["packed_bytes"],
                "datatype": datatypes.get(layer["codes"], ""),
                "integer kernel": layer["integer_kernel"],
            }
            for layer in said.get("layers", [])
        ]
    return {
        "source": str(path),
        "kind": "ONNX model",
        "producer": model.producer_name,
        "opset": max(item.version for item in model.opset_import),
        "nodes": len(model.graph.node),
        "file_bytes": path.stat().st_size,
        "annotations": len(datatypes),
        "layers": layers,
        "left_float": said.get("left_float", {}),
        "problems": annotation.lint(model),
    }


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
    run_folder.refuse_unless_run(folder)
    summary = runs.finished_summary(folder)
    if summary is None:
        raise InputError(f"{folder}: not finished; go on with qtool train --resume")
    size = None
    if (folder / run_folder.CONVERT).is_file() and run_folder.integer_is_fresh(folder):
        size = run_folder.read_json(folder / run_folder.CONVERT).get("integer_bytes")
    return _arm(folder, summary["validation_accuracy"], summary["weight_bits_mean"], size, None)


def _onnx_arm(path: Path) -> Inspection:
    """Measure a file: its accuracy on the validation set of the recipe that it names."""
    said = annotation.read_metadata(read_onnx(path))
    with run_folder.intact(path, "what qtool wrote into it is damaged"):
        bits = [
            (layer["weight_bits"] or 32, torch.Size(layer["shape"]).numel())
            for layer in said.get("layers", [])
        ]
        weights = sum(count for _, count in bits)
        mean_bits = sum(width * count for width, count in bits) / weights if weights else None
    accuracy = latency = None
    if "recipe" in said:
        recipe = check(Recipe, said["recipe"], f"{path}, its recipe")
        loaders = assembly.make_data(recipe, torch.device("cpu"))
        accuracy = parity.accuracy(path, loaders.validation.batches(0))
        latency = parity.latencies([path], assembly.first_images(loaders)[:1])[0]
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

"""What a recipe, run folder, integer model or ONNX file holds."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtool.files.reading import intact, read_json
from qtool.inspection.onnx import Inspection, inspect_onnx
from qtool.integer.layers import LayerSpec, converted_state, integer_layers
from qtool.models.two_layers import shape_of_input
from qtool.models.vision import rebuild_model
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import plan, prepare
from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe
from qtool.runs import build, checkpoint
from qtool.runs.folder import (
    CHECKPOINT,
    RECIPE,
    SUMMARY,
    refuse_unless_run,
)
from qtool.runs.run import NOT_OF_THIS_RUN, open_integer


def inspect_source(source: Path) -> Inspection:
    """Return what there is to say of a file or folder, by what it is.

    Raises:
        InputError: If it is missing, or none of the kinds that qtool knows.
    """
    if source.is_dir():
        return _inspect_run(source)
    if source.suffix == ".onnx":
        return inspect_onnx(source)
    if source.suffix == ".safetensors":
        return _inspect_integer(source)
    return _inspect_recipe(source)


def _inspect_recipe(path: Path) -> Inspection:
    """Plan a recipe without data, weights or downloads; random images decide the grids."""
    recipe = load_recipe(path)
    built = build.make_network_without_data(recipe)
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
    refuse_unless_run(folder)
    recipe = load_recipe(folder / RECIPE)
    found: Inspection = {"source": str(folder), "kind": "run", "model": recipe.model.name}
    if (folder / SUMMARY).is_file():
        found |= read_json(folder / SUMMARY)
    if not (folder / CHECKPOINT).is_file():
        return found
    path = folder / CHECKPOINT
    state = checkpoint.load(path, torch.device("cpu"))
    with intact(path, NOT_OF_THIS_RUN):
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
    recipe, integer, architecture = open_integer(path)
    state, modules, layers = converted_state(integer), integer_layers(integer), []
    with intact(path, "its metadata is damaged"):
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

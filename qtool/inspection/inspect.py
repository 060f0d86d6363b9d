"""What a recipe, a run folder or an integer model holds."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qtool.console import say
from qtool.data.sources import known_classes
from qtool.export.writing.saturation import saturating_layers
from qtool.files.json_data import read_json
from qtool.files.reading import intact
from qtool.graph.exact import load_model
from qtool.graph.sites.frames import sites_of
from qtool.inspection.onnx import inspect_onnx
from qtool.inspection.weights import holds_floats_alone, inspect_weights, names_weights
from qtool.integer.converted import converted_state
from qtool.integer.layers import IntegerLayer, LayerSpec, integer_layers
from qtool.integer.site_specs import SiteSpec
from qtool.models.architecture import Architecture
from qtool.models.two_layers import shape_of_input
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.plan import plan
from qtool.quantizers.plan_sites import plan_sites
from qtool.quantizers.prepare import prepare
from qtool.quantizers.sites import quantizer_of
from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe
from qtool.reports.inspections import InspectedLayer, Inspection, PlanRow, SiteRow
from qtool.runs.access import OF_A_FILE, OWN, Access
from qtool.runs.built import build
from qtool.runs.converted.integer import Integer
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import NOT_OF_THIS_RUN, Run


def inspect_source(source: Path, access: Access = OWN) -> Inspection:
    """Return what there is to say of a file or folder, by what it is.

    Args:
        source: the file or folder.
        access: whether the user's own networks run.

    Raises:
        InputError: If it is missing, or none of the kinds that qtool knows.
    """
    if source.is_dir():
        return _inspect_run(source, access)
    if source.suffix == ".onnx":
        return inspect_onnx(source)
    if names_weights(source):
        return inspect_weights(source)
    if source.suffix == ".safetensors":
        if holds_floats_alone(source):
            return inspect_weights(source)
        return _inspect_integer(source, access)
    return _inspect_recipe(source, access)


def _inspect_recipe(path: Path, access: Access) -> Inspection:
    """Plan a recipe without data, weights or downloads; random images decide the grids."""
    recipe = load_recipe(path, code=access.code_of(path).only("model"))
    built = build.make_network_without_data(recipe)
    if known_classes(recipe.data.name, **recipe.data.params) is None:
        assumed = built.architecture["classes"]
        say(
            f"note: only the files of {recipe.data.name} tell how many classes there are, and "
            f"{assumed} are assumed here; `qtool check {path}` counts them"
        )
    model = prepared(recipe, built.model, built.architecture)
    rows = plan(model)
    made = Inspection(
        source=str(path),
        kind="recipe",
        model=recipe.model.name,
        data=recipe.data.name,
        image_size=built.architecture["image_size"],
        classes=built.architecture["classes"],
        parameters=sum(p.numel() for p in built.model.parameters()),
        layers=[_planned(row) for row in rows if not row.why],
        left_float=_left_float(rows),
    )
    return _with_sites(made, plan_sites(model), _could(rows))


def prepared(recipe: Recipe, network: nn.Module, architecture: Architecture) -> nn.Module:
    """Return a network prepared as a recipe has it, by random images in the place of data."""
    shape = shape_of_input(architecture)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return prepare(network, recipe.without_budget().quantization, images, search=False)


def _planned(row: PlanRow) -> InspectedLayer:
    """Return a layer of a prepared model."""
    return InspectedLayer.model_validate(
        {
            "layer": row.name,
            "weight": _dimensions(row.shape),
            "weights": row.weights,
            "input": row.activations,
            "how weights": row.weights_how,
            "how input": row.activations_how,
        }
    )


def _with_sites(made: Inspection, rows: list[SiteRow], could: list[str]) -> Inspection:
    """Return what was said, what becomes of values where that is decided, what may saturate."""
    told = {"sites": rows, "may_saturate": could}
    return made.model_copy(update={key: value for key, value in told.items() if value})


def _could(rows: list[PlanRow]) -> list[str]:
    return [row.name for row in rows if row.may_saturate]


def _left_float(rows: list[PlanRow]) -> dict[str, str]:
    return {row.name: row.why for row in rows if row.why}


def _dimensions(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _inspect_run(path: Path, access: Access) -> Inspection:
    code = RunFolder(path).code(run_copies=access.run_code).only("model")
    run = Run.open(path, torch.device("cpu"), access, code=code)
    found: dict[str, object] = {"source": str(path), "kind": "run", "model": run.recipe.model.name}
    if run.folder.summary.is_file():
        found |= read_json(run.folder.summary)
    if not run.folder.checkpoint.is_file():
        return Inspection.of(found, run.folder.summary)
    state, network = run.checkpoint, run.network
    with intact(run.folder.checkpoint, NOT_OF_THIS_RUN):
        model = prepared(run.recipe, network, state.architecture)
        load_model(model, state.judged)
    rows, modules = plan(model), quant_layers(model)
    layers: list[InspectedLayer] = []
    for row in rows:
        if not row.why:
            layer = modules[row.name]
            quantizers = (layer.weight_quantizer, layer.quantizer_of_input)
            scales = ["" if q is None else _scale_range(q.used_scale) for q in quantizers]
            learned = {"weight_scale": scales[0], "input_scale": scales[1]}
            layers.append(_planned(row).model_copy(update=learned))
    stands = sites_of(model)
    sites = [
        row.model_copy(update={"scale": _scale_range(quantizer_of(stands[row.site]).used_scale)})
        if row.site in stands
        else row
        for row in plan_sites(model)
    ]
    found |= {"layers": layers, "left_float": _left_float(rows)}
    return _with_sites(Inspection.of(found, run.folder.summary), sites, _could(rows))


def _scale_range(scale: Tensor) -> str:
    low, high = float(scale.min()), float(scale.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _inspect_integer(path: Path, access: Access) -> Inspection:
    opened = Integer.open(path, replace(OF_A_FILE, run_code=access.run_code), runs=["model"])
    state, modules = converted_state(opened.model), integer_layers(opened.model)
    with intact(path, "its metadata is damaged"):
        layers = [_integer_layer(spec, modules[spec.name]) for spec in state.layers]
    made = Inspection(
        source=str(path),
        kind="integer model",
        model=opened.recipe.model.name,
        image_size=opened.architecture["image_size"],
        classes=opened.architecture["classes"],
        file_bytes=path.stat().st_size,
        layers=layers,
        left_float=state.left_float,
        notes=state.notes,
    )
    sites = [spec for spec in state.sites if spec.output is not None]
    saturating = saturating_layers(opened.model)
    could = [spec.name for spec in state.layers if spec.name in saturating]
    return _with_sites(made, [_integer_site(spec) for spec in sites], could)


def _integer_site(spec: SiteSpec) -> SiteRow:
    """Return what stands at a site of an integer model, and rounds."""
    grid, computes = spec.output, spec.kind not in ("rounded", "requantize")
    assert grid is not None
    said: dict[str, object] = {
        "site": str(spec.site),
        "made_by": spec.norm or spec.site.leaf or spec.site.function,
        "grid": f"{grid.bits}-bit {grid.grid}",
    }
    return SiteRow.model_validate(said | ({"join": spec.kind} if computes else {}))


def _integer_layer(spec: LayerSpec, layer: IntegerLayer) -> InspectedLayer:
    return InspectedLayer.model_validate(
        {
            "layer": spec.name,
            "weight": _dimensions(spec.shape),
            "weight bits": spec.weight_bits or 32,
            "grid": spec.weight_grid or "float",
            "input bits": spec.input_bits or 32,
            "bytes": -(-spec.weights * (spec.weight_bits or 32) // 8),
            "weight scale": "" if layer.weight_scale is None else _scale_range(layer.weight_scale),
            "why unfused": spec.unfused,
        }
    )

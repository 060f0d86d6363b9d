"""Integer model -> ONNX with QuantizeLinear / DequantizeLinear pairs and packed weights.

torch.onnx traces the model once, with standard quantization operators at every integer layer;
then each layer's weight is rewritten in the form that the target runs fastest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from qtool.export.proof.unchanged import check_weights
from qtool.export.targets.target import TARGETS
from qtool.export.writing.added import round_before_adding
from qtool.export.writing.annotation import (
    Annotation,
    made_of,
    write_annotations,
    write_metadata,
)
from qtool.export.writing.arithmetic import to_arithmetic, with_zero_points
from qtool.export.writing.ends import put_ends
from qtool.export.writing.float_weights import keep_float
from qtool.export.writing.forms import choose_forms
from qtool.export.writing.layer_metadata import LayerMetadata, metadata_of, write_layers
from qtool.export.writing.native import refuse_unheld
from qtool.export.writing.node_names import name_nodes
from qtool.export.writing.on_codes import keep_codes
from qtool.export.writing.packing import choose_layouts
from qtool.export.writing.qdq_joins import mark_joins, pools_of, put_joins
from qtool.export.writing.qdq_modules import Ceil, QdqLayer, QdqReLU
from qtool.export.writing.quant_nodes import to_quant
from qtool.export.writing.request import Writing
from qtool.export.writing.saturation import refuse_saturating, saturating_layers
from qtool.export.writing.saved import save_checked
from qtool.export.writing.sizes import WINDOWS, WORDS, name_sizes
from qtool.export.writing.trace import Call, traced
from qtool.export.writing.weights import Stored, WeightWriter, to_proto
from qtool.graph.copies import copy_of
from qtool.graph.swap import replace_module
from qtool.images.preprocess import Preprocess
from qtool.images.usage import Usage
from qtool.integer.converted import Converted, converted_state
from qtool.integer.layers import integer_layers
from qtool.integer.relu import integer_relus
from qtool.numerics.grid import IntegerGrid
from qtool.reports.layers import ExportedLayer
from qtool.reports.result import Json
from qtool.reports.results import ExportDescription


def export_onnx(
    integer: nn.Module,
    example: object,
    path: Path | str,
    target: str = "onnxruntime",
    *,
    batch: int | None = None,
    annotate: bool = True,
    ceil: Ceil = "exact",
    metadata: Mapping[str, object] | None = None,
    classes: Sequence[str] = (),
    preprocess: Mapping[str, object] | None = None,
    any_size: bool = False,
) -> Json:
    """Write the integer model as an ONNX file.

    Args:
        integer: from `convert`.
        example: one batch of inputs: a tensor, a tuple by position or a dict by keyword; only
            shapes and types matter. A tensor whose first dimension is the batch has it open.
        path: of the file to write.
        target: name in TARGETS.
        batch: fixed batch size; None leaves it dynamic, where the target says nothing else.
        annotate: write quantization_annotation.
        ceil: how inputs with rounding ceil are written: `exact`, or `shifted` by half a step, which
            is faster and differs at and next to whole steps.
        metadata: goes into metadata_props beside each layer's bits.
        classes: their names, in the order of the outputs (`qtool.classes`).
        preprocess: how a picture is prepared (`qtool.preprocess`): mean, std, size, resize, crop
            and channels, as `qtool.images.preprocess.Preprocess` has them.
        any_size: leave height and width of images open, where the network takes other sizes; a
            note says why they are not.

    Returns:
        The description that went into metadata_props, with every layer and its bytes on disk, and
        the names of inputs and outputs; under `may_saturate` the layers that may be wrong on
        processors without VNNI, where there are any.

    Raises:
        ExportError: If torch.onnx cannot express the model, or the runtime would quantize a float
            weight by itself.
        MissingRuntimeError: If the target's runtime is not installed, or too old.
        ModelError: If the target has no form for a layer's codes, or for one that could saturate.
        RecipeError: If there is no such target.
        ValueError: If the example holds no tensor, or `preprocess` is not what is described.
    """
    prepared = None if preprocess is None else Preprocess.model_validate(preprocess)
    usage = Usage(tuple(classes), prepared)
    described = write_onnx(
        integer,
        example,
        Path(path),
        Writing(target, batch, annotate, ceil, metadata or {}, usage, any_size=any_size),
    )
    return {**(metadata or {}), **described.to_json()}


RECTIFIERS = ("relu", "clip")  # functions that the ends of a grid do


def write_onnx(
    integer: nn.Module, example: object, path: Path, writing: Writing
) -> ExportDescription:
    """Write the integer model as an ONNX file; return what its metadata say of it.

    Raises:
        ExportError: If torch.onnx cannot express the model, or the runtime would quantize a float
            weight by itself.
        MissingRuntimeError: If the runtime is not installed, or too old, and must prove the file.
        ModelError: If a layer could saturate, and the target has no form for it.
        RecipeError: If there is no such target.
    """
    state, target = converted_state(integer), TARGETS[writing.target]()
    runtime, why_unproven = writing.runtime()
    saturating = saturating_layers(integer)
    if target.saturation == "seven_bits":
        refuse_saturating(saturating, target.library.title)
    codes = _codes(integer)
    refuse_unheld(codes, target.weights)
    model = copy_of(integer).cpu().eval()
    any_size = writing.any_size and target.any_size
    call = Call(model, example, writing.batch or target.batch, any_size=any_size)
    pools = pools_of(model, call.inputs)
    if call.other.inputs is not None and pools_of(model, call.other.inputs) != pools:
        call.keep_size(WINDOWS)
    for name, layer in integer_layers(model).items():
        model = replace_module(model, name, QdqLayer(layer, writing.ceil))
    for name, relu in integer_relus(model).items():
        model = replace_module(model, name, QdqReLU(relu, writing.ceil))
    joins = put_joins(model, pools, writing.ceil)
    graph = traced(model, call, target.opset, target.ir_version)
    sizes = name_sizes(graph.graph, call.given)
    mark_joins(graph.graph, [str(s.site) for s in state.sites if s.kind != "rounded"])
    # what is rounded behind a float function leaves that in the graph
    taken = [s.site for s in state.sites if s.kind != "rounded" or s.site.function in RECTIFIERS]
    name_nodes(graph.graph, model, [spec.name for spec in state.layers], taken)
    if state.sites and target.sums_bytes:
        keep_codes(graph.graph)
    writer = WeightWriter(graph, target)
    layouts = choose_layouts(codes) if target.packed else {}
    stored = {
        s.name: writer.write(s, layouts.get(s.name), saturates=s.name in saturating)
        for s in state.layers
    }
    annotations = _annotations(writer, state)  # it names the tensors that it speaks of
    if target.activations == "qonnx":
        annotations, stored = to_quant(graph.graph, state.layers, annotations, stored)
    if target.sums_bytes:
        keep_float(graph.graph)
    integer_kernels: set[str] = set()
    mixed = target.mixed and runtime is not None
    if mixed and runtime is not None:
        asked = {s.name: (stored[s.name].codes, len(s.shape)) for s in state.layers}
        forms = choose_forms(to_proto(graph), asked, target, runtime)
        integer_kernels = forms.integer
        for spec in state.layers:
            if spec.name in forms.floating:
                writer.unpack_to_float(spec.name, len(spec.shape))
    if target.guards_sums:
        round_before_adding(graph.graph)
    if target.activations == "arithmetic":
        to_arithmetic(graph.graph)
    writer.finish()
    if target.activations == "arithmetic":
        annotations = with_zero_points(annotations, graph.graph)
    proto = to_proto(graph)
    notes = [
        f"{name}: the batch is fixed, for the model's code computes with it as with a number"
        for name in call.closed(graph.graph)
    ]
    if writing.any_size:
        notes += _fixed_sizes(sizes, call.other.why or target.why_fixed)
    if runtime is not None and runtime.shows_weights:
        notes += check_weights(proto, integer_layers(integer) | joins, runtime)
    could = [s.name for s in state.layers if target.sums_bytes and s.name in saturating]
    in_kernels = [n for n in could if n in integer_kernels or not mixed]
    may_saturate = [name for name in in_kernels if not stored[name].zero_point]
    described = ExportDescription(
        target=writing.target,
        ceil=writing.ceil,
        layers=[
            ExportedLayer.model_validate(
                stored[spec.name]._asdict()
                | spec.as_dict()
                | {"integer_kernel": spec.name in integer_kernels}
            )
            for spec in state.layers
        ],
        table_bytes=writer.table_bytes,
        left_float=state.left_float,
        inputs=[str(value.name) for value in graph.graph.inputs],
        outputs=[str(value.name) for value in graph.graph.outputs],
    )
    said = {"notes": notes, "may_saturate": may_saturate, "unproven": why_unproven}
    described = described.model_copy(update={key: value for key, value in said.items() if value})
    proto.producer_name, proto.producer_version = "qtool", made_of({})["version"]
    del proto.graph.value_info[:]  # readers infer shapes by themselves
    if writing.annotate:
        write_annotations(proto.graph, annotations)
    said = described.to_json()
    if (described.inputs, described.outputs) == (["images"], ["logits"]):
        del said["inputs"], said["outputs"]
    write_metadata(proto, {**writing.metadata, **said, **made_of(writing.metadata)}, writing.usage)
    if target.sums_bytes:  # else there are no codes in bytes, which they are to be told again by
        write_layers(proto, _layer_metadata(integer, annotations, stored))
    save_checked(proto, path)
    return described


def _fixed_sizes(sizes: Mapping[str, Sequence[str]], why: str) -> list[str]:
    """Return a note for each input of images whose sizes are not all open.

    Args:
        sizes: which are, of each.
        why: they are not; "" where nothing spoke against it before the model was traced.
    """
    reason = why or "the model's code computes with it as with a number"
    closed = {name: [word for word in WORDS if word not in open_] for name, open_ in sizes.items()}
    if not sizes:
        return [f"height and width are not open: {reason}"]
    return [
        f"{name}: {' and '.join(words)} {'is' if len(words) == 1 else 'are'} fixed: {reason}"
        for name, words in closed.items()
        if words
    ]


def add_ends(path: Path, made: Path, writing: Writing) -> None:
    """Write a file with what stands before and behind the network of another.

    Raises:
        InputError: If that network does not take one batch of pictures, or give one of logits.
    """
    model = onnx.load(str(path))
    by_products = not TARGETS[writing.target]().resizes
    put_ends(model, writing.ends, writing.usage, by_products=by_products)
    save_checked(model, made)


def _layer_metadata(
    integer: nn.Module, annotations: list[Annotation], stored: Mapping[str, Stored]
) -> dict[str, LayerMetadata]:
    """Return what is said of each layer that has codes of its own in the file."""
    notes = {note.tensor: note for note in annotations}
    layers = {n: la for n, la in integer_layers(integer).items() if stored[n].codes in notes}
    return {
        name: metadata_of(layer, notes[stored[name].codes], stored[name].zero_point)
        for name, layer in layers.items()
    }


def _codes(integer: nn.Module) -> dict[str, tuple[NDArray[np.int8], int]]:
    """Return the weight codes of each layer that has some, and the bits of their grid."""
    return {
        name: (layer.codes.cpu().numpy(), layer.spec.weight_bits)
        for name, layer in integer_layers(integer).items()
        if layer.spec.weight_bits is not None
    }


def _annotations(writer: WeightWriter, state: Converted) -> list[Annotation]:
    """Name each quantized tensor after its layer, site or ReLU; return one annotation of each.

    Layers that share an input share its quantizer.
    """
    found = [note for spec in state.layers for note in writer.annotations(spec)]
    for spec in state.layers:
        if spec.output_site:
            found += writer.site_annotations(spec.output_site, spec.output)
    for site in state.sites:
        grid = None if site.output is None else IntegerGrid(site.output.bits, site.output.grid)
        found += writer.site_annotations(str(site.site), grid)
    for relu in state.relus:
        for index, call in enumerate(relu.calls):
            found += writer.input_annotation(str(relu.site(index)), call.integers)
    return list({item.tensor: item for item in found}.values())

"""Integer model -> ONNX with QuantizeLinear / DequantizeLinear pairs and packed weights.

torch.onnx traces the model once, with standard quantization operators at every integer layer;
then each layer's weight is rewritten in the form that the target runs fastest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from qtool.export.proof.unchanged import check_weights
from qtool.export.targets.target import TARGETS
from qtool.export.writing.annotation import (
    Annotation,
    made_of,
    write_annotations,
    write_metadata,
)
from qtool.export.writing.ends import put_ends
from qtool.export.writing.layer_metadata import LayerMetadata, metadata_of, write_layers
from qtool.export.writing.native import refuse_unheld
from qtool.export.writing.qdq_modules import Ceil
from qtool.export.writing.request import Writing
from qtool.export.writing.saturation import refuse_saturating, saturating_layers
from qtool.export.writing.saved import read_back, save_checked
from qtool.export.writing.traced_model import traced_model
from qtool.export.writing.weights import Stored, to_proto
from qtool.export.writing.written_weights import Written, weight_codes, write_weights
from qtool.files.whole import refuse_unless_writable
from qtool.images.preprocess import Preprocess
from qtool.images.usage import Usage
from qtool.integer.converted import Converted, converted_state
from qtool.integer.layers import integer_layers
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
        InputError: If the path is a folder, or nothing may be written there.
        ValueError: If the example holds no tensor, or `preprocess` is not what is described.
    """
    refuse_unless_writable(Path(path), "give the name of an .onnx file")
    prepared = None if preprocess is None else Preprocess.model_validate(preprocess)
    usage = Usage(tuple(classes), prepared)
    described = write_onnx(
        integer,
        example,
        Path(path),
        Writing(target, batch, annotate, ceil, metadata or {}, usage, any_size=any_size),
    )
    return {**(metadata or {}), **described.to_json()}


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
    codes = weight_codes(integer)
    refuse_unheld(codes, target.weights)
    made = traced_model(integer, example, writing, target)
    written = write_weights(made.graph, state, codes, saturating, target, runtime=runtime)
    proto, notes = to_proto(made.graph), made.notes
    if runtime is not None and runtime.shows_weights:
        notes += check_weights(proto, integer_layers(integer) | made.joins, runtime)
    described = _described(state, written, made.graph.graph, writing)
    said = {
        "notes": notes,
        "may_saturate": written.may_saturate(saturating),
        "unproven": why_unproven,
    }
    described = described.model_copy(update={key: value for key, value in said.items() if value})
    proto.producer_name, proto.producer_version = "qtool", made_of({})["version"]
    del proto.graph.value_info[:]  # readers infer shapes by themselves
    if writing.annotate:
        write_annotations(proto.graph, written.annotations)
    _write_description(proto, described, writing)
    if target.sums_bytes:  # else there are no codes in bytes, which they are to be told again by
        write_layers(proto, _layer_metadata(integer, written.annotations, written.stored))
    save_checked(proto, path)
    return described


def _described(
    state: Converted, written: Written, graph: ir.Graph, writing: Writing
) -> ExportDescription:
    """Return what a file holds."""
    return ExportDescription(
        target=writing.target,
        ceil=writing.ceil,
        layers=[
            ExportedLayer.model_validate(
                written.stored[spec.name]._asdict()
                | spec.as_dict()
                | {"integer_kernel": spec.name in written.integer_kernels}
            )
            for spec in state.layers
        ],
        table_bytes=written.table_bytes,
        left_float=state.left_float,
        inputs=[str(value.name) for value in graph.inputs],
        outputs=[str(value.name) for value in graph.outputs],
    )


def _write_description(
    model: onnx.ModelProto, described: ExportDescription, writing: Writing
) -> None:
    """Write into a file what it holds, what it was made of, and how it is used."""
    said = described.to_json()
    if (described.inputs, described.outputs) == (["images"], ["logits"]):
        del said["inputs"], said["outputs"]
    write_metadata(model, {**writing.metadata, **said, **made_of(writing.metadata)}, writing.usage)


def add_ends(path: Path, made: Path, writing: Writing) -> None:
    """Write a file with what stands before and behind the network of another.

    Raises:
        InputError: If that network does not take one batch of pictures, or give one of logits.
    """
    model = read_back(path)
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

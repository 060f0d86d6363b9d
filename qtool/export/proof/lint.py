"""What is wrong with what a model says of its quantized tensors, in annotations and metadata."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from qtool.export.proof.stored_weights import is_real, other_scales, stored_weights
from qtool.export.targets.target import Array, Runtime
from qtool.export.writing.annotation import (
    DATATYPE,
    SCALE,
    ZERO_POINT,
    Annotation,
    range_of_datatype,
    read_annotations,
    read_metadata,
    tensor_names,
)
from qtool.export.writing.layer_metadata import LayerMetadata, digest, read_layers
from qtool.export.writing.quantized_values import BYTE, QuantizedValues
from qtool.export.writing.weights import REAL, part_of
from qtool.integer.layers import LayerSpec
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.saturation import MIDDLE

BIASED = 3  # an operator that reads a value, a weight and a bias
CLOSE = 1e-5  # relative: products in float32
REPAIR = "qtool inspect --repair"


def lint(model: onnx.ModelProto, runtime: Runtime | None = None) -> list[str]:
    """Return what is wrong with a model's annotations and metadata, one line each.

    Args:
        model: the file.
        runtime: unpacks weights; None leaves out what must be known of their codes.
    """
    notes = read_annotations(model.graph)
    return [*_names(model, notes), *_contradictions(model, notes), *_weights(model, notes, runtime)]


def _names(model: onnx.ModelProto, notes: list[Annotation]) -> Iterator[str]:
    """Yield what is wrong with names: none of that name, said twice, or not at all."""
    graph, names, seen = model.graph, tensor_names(model.graph), set[str]()
    for item in notes:
        if item.tensor in seen:
            yield f"{item.tensor} is annotated twice"
        seen.add(item.tensor)
        if item.tensor not in names:
            yield f"annotation of {item.tensor}: there is no such tensor"
        for key, name in ((SCALE, item.scale), (ZERO_POINT, item.zero_point)):
            if not name:
                yield f"annotation of {item.tensor}: no {key}"
            elif name not in names:
                yield f"annotation of {item.tensor}: {key} {name} is no tensor"
        if not item.datatype:
            yield f"annotation of {item.tensor}: no {DATATYPE}"
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and not seen & _reached(graph, node.output[0]):
            yield f"{node.output[0]} is quantized, but not annotated"
    for layer in read_metadata(model).get("layers", []):
        tensor = layer.get("codes")
        if layer.get("weight_bits") and tensor in names and tensor not in seen:
            yield f"{tensor} holds quantized weights, but is not annotated"


def _reached(graph: onnx.GraphProto, name: str) -> set[str]:
    """Return a quantized tensor and what integer operators make of it."""
    reached = {name}
    for node in graph.node:
        if node.op_type in ("Clip", "Mul", "Add") and not reached.isdisjoint(node.input):
            reached.update(node.output)
    return reached


def _contradictions(model: onnx.ModelProto, notes: list[Annotation]) -> Iterator[str]:
    """Yield what annotations say otherwise than the graph."""
    values = QuantizedValues(model.graph)
    notes = [note for note in notes if not note.tensor.endswith(REAL)]
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3:
            readers.setdefault(node.input[0], []).append(node)
    for note in notes:
        said = f"annotation of {note.tensor}"
        scale, zero = values.array(note.scale), values.array(note.zero_point)
        if zero.ndim and scale.shape != zero.shape:  # one zero point may be all channels'
            shapes = f"a scale of shape {list(scale.shape)}, a zero point of {list(zero.shape)}"
            yield f"{said}: {shapes}"
        read = readers.get(note.tensor, [])
        pairs = [(values.array(r.input[1]), values.array(r.input[2])) for r in read]
        if pairs and not any(_same(scale, s) and _same(zero, z) for s, z in pairs):
            yield (
                f"{said}: {note.scale} and {note.zero_point} are not what dequantizes it, "
                f"{read[0].input[1]} and {read[0].input[2]}"
            )
        if note.datatype and range_of_datatype(note.datatype) is None:
            yield f"{said}: {DATATYPE} {note.datatype} is no integer type"
    yield from _biases(model.graph, values)
    found = {note.tensor: note for note in values.annotations()}
    grids = dict(_grids(model))
    for note in notes:
        if note.tensor in found and values.array(note.zero_point).dtype == np.int8:
            yield (
                f"annotation of {note.tensor}: int8 values, for which runtimes lack kernels or are "
                f"wrong; uint8 around 128 has the same codes"
            )
        cut, wanted = values.range_of(note.tensor), grids.get(note.tensor)
        if note.tensor in found and wanted is not None and cut not in (wanted, BYTE):
            yield (
                f"{note.tensor}: cut off at {cut[0]} and {cut[1]}, and its grid, by metadata, at "
                f"{wanted[0]} and {wanted[1]}"
            )
        graph_says = found.get(note.tensor)
        if graph_says is not None and not _holds(note.datatype, values.range_of(note.tensor)):
            low, high = values.range_of(note.tensor)
            yield (
                f"annotation of {note.tensor}: {note.datatype}, and its codes go from {low} to "
                f"{high}, which takes {graph_says.datatype}"
            )


def _biases(graph: onnx.GraphProto, values: QuantizedValues) -> Iterator[str]:
    """Yield integer biases whose scale is not the input's times the weight's."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        given = [makers.get(name) for name in node.input]
        pairs = [n for n in given if n is not None and n.op_type == "DequantizeLinear"]
        if len(pairs) < BIASED or len(pairs) < len(node.input):
            continue
        x, weight, bias = (values.array(pair.input[1]).astype(np.float64) for pair in pairs)
        wide = values.array(pairs[2].input[0]).dtype == np.int32
        fits = x.size == 1 and weight.size in (1, bias.size)
        if wide and fits and not np.allclose(bias, x * weight, rtol=CLOSE, atol=0):
            yield (
                f"{pairs[2].input[0]}: its scale {pairs[2].input[1]} is not the input's times the "
                f"weight's, which integer kernels take it for"
            )


def _grids(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the quantized values of layers and the smallest and largest byte of their grids."""
    for said in read_metadata(model).get("layers", []):
        spec = LayerSpec.model_validate(said)
        values = (
            (part_of(spec.name, "input_codes"), spec.input, None, None),
            (f"{spec.output_site}.codes", spec.output, spec.output_bottom, spec.output_top),
        )
        for tensor, grid, bottom, top in values:
            if grid is not None and grid.kind != "mid_rise" and spec.input_rounding != "ceil":
                shift = MIDDLE if grid.signed else 0
                low = grid.qmin if bottom is None else max(grid.qmin, bottom)
                high = grid.qmax if top is None else min(grid.qmax, top)
                yield tensor, (low + shift, high + shift)


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _holds(datatype: str, codes: tuple[int, int]) -> bool:
    """Tell whether a datatype has all codes; one that is no integer type is said elsewhere."""
    ends = range_of_datatype(datatype)
    return ends is None or (ends[0] <= codes[0] and codes[1] <= ends[1])


def _weights(
    model: onnx.ModelProto, notes: list[Annotation], runtime: Runtime | None
) -> Iterator[str]:
    """Yield what is wrong with weights: other codes than metadata say, or packed no more."""
    layers, said = read_layers(model), {note.tensor: note for note in notes}
    layers = {name: layer for name, layer in layers.items() if not is_real(layer)}
    for name, layer in layers.items():
        note = said.get(layer.tensors.get("codes", ""))
        if note is not None and note.datatype not in ("UINT8", "", _datatype(layer)):
            yield (
                f"annotation of {note.tensor}: {note.datatype}, and metadata say {layer.bits} bits "
                f"({layer.grid}) of {name}, which is {_datatype(layer)}"
            )
    if runtime is None or not layers:
        return
    packed = {la["name"]: la.get("packed_bytes") for la in read_metadata(model).get("layers", [])}
    found = stored_weights(model, layers, runtime)
    for name in layers:
        weight, before = found.get(name), packed.get(name)
        if weight is None:
            yield f"{name}: no tensor of the file has the codes that metadata say (SHA-256)"
        elif before is not None and weight.nbytes > before:
            kind = {"float": "float", "integers": "int8", "unpacked": "half unpacked codes"}[
                weight.form
            ]
            yield (
                f"{weight.tensor}: the packing of {name} is undone, {weight.nbytes:,} bytes of "
                f"{kind} for {before:,}; {REPAIR} packs it again"
            )
    yield from _other_numbers(model, layers)


def _other_numbers(model: onnx.ModelProto, layers: Mapping[str, LayerMetadata]) -> Iterator[str]:
    """Yield scales and zero points that are not those of the metadata."""
    yield from (why for _, why in other_scales(model, layers))
    read = {name for node in model.graph.node for name in node.input}
    integers = {
        digest(numpy_helper.to_array(item))
        for item in model.graph.initializer
        if item.data_type == onnx.TensorProto.INT32 and item.name in read
    }
    for said in read_metadata(model).get("layers", []):
        layer = layers.get(said["name"])
        kept = said.get("integer_kernel") and said.get("bias") == "int32"
        if kept and layer is not None and layer.sha256.bias not in integers:
            yield (
                f"{said['name']}: no int32 tensor is the bias that metadata say (SHA-256); a float "
                f"one is rounded anew, or keeps runtimes from integer kernels"
            )


def _datatype(layer: LayerMetadata) -> str:
    return IntegerGrid(layer.bits, layer.grid).finn_datatype

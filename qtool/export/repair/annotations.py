"""Annotations of a whole file, from its graph and the metadata of its layers."""

from collections.abc import Mapping

import numpy as np
import onnx

from qtool.export.proof.stored_weights import StoredWeight, stored_weights
from qtool.export.targets.target import Runtime
from qtool.export.writing.annotation import Annotation
from qtool.export.writing.layer_metadata import LayerMetadata, digest, zero_points
from qtool.export.writing.quantized_values import QuantizedValues
from qtool.numerics.grid import IntegerGrid


def annotations_of(
    model: onnx.ModelProto, layers: Mapping[str, LayerMetadata], runtime: Runtime
) -> list[Annotation]:
    """Return what there is to say of every quantized tensor of a file.

    Args:
        model: the file.
        layers: what its metadata say of each.
        runtime: unpacks weights.
    """
    values, found = QuantizedValues(model.graph), dict[str, Annotation]()
    for name, weight in stored_weights(model, layers, runtime).items():
        if weight.form != "float":
            note = _of_weight(model, values, layers[name], weight)
            found[note.tensor] = note
    for note in (*values.annotations(), *values.weights()):
        found.setdefault(note.tensor, note)
    return list(found.values())


def _of_weight(
    model: onnx.ModelProto, values: QuantizedValues, layer: LayerMetadata, weight: StoredWeight
) -> Annotation:
    """Return what there is to say of a layer's codes: with what dequantizes them, if anything."""
    datatype = IntegerGrid(layer.bits, layer.grid).finn_datatype
    if zero_points(layer).any():
        datatype = "UINT8"
    for node in model.graph.node:
        reads = node.op_type == "DequantizeLinear" and node.input[0] == weight.tensor
        if reads and len(node.input) == 3:
            return Annotation(weight.tensor, node.input[1], node.input[2], datatype)
    numbers = (("scale", layer.sha256.scale), ("zero_point", layer.sha256.zero_point))
    scale, zero = (_named(model, values, layer.tensors.get(part, ""), h) for part, h in numbers)
    return Annotation(weight.tensor, scale, zero, datatype)


def _named(model: onnx.ModelProto, values: QuantizedValues, name: str, expected: str) -> str:
    """Return the name of the constant that has a hash; the known one, where it still does."""
    others = (item.name for item in model.graph.initializer)
    for candidate in (name, *others):
        array = values.array(candidate)
        known = array.size and array.dtype in (np.float32, np.int8, np.uint8)
        if known and digest(array) == expected:
            return candidate
    return ""

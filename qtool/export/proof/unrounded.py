"""An ONNX file with nothing rounded: the network in float that a quantized file is timed against.

Read from the file alone, so that any file with QuantizeLinear and DequantizeLinear has one, whoever
wrote it. Weights are what the runtime makes of them. A value that was rounded stays as it is, but
where its bytes begin at 0 its negative part is cut off: there the network has a ReLU, which such
files leave to QuantizeLinear. Bounds from above have no operator of their own.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qtool.errors import ExportError
from qtool.export.proof.constants import codes_in, nodes_behind
from qtool.export.reading import read_model
from qtool.export.targets.target import Array, Runtime
from qtool.export.writing.quantized_values import depending
from qtool.export.writing.saved import save


def write_unrounded(given: Path, made: Path, runtime: Runtime) -> Path:
    """Write a file's network in float, and return where.

    Raises:
        ExportError: As `unrounded`.
    """
    save(unrounded(read_model(given), runtime), made)
    return made


def unrounded(model: onnx.ModelProto, runtime: Runtime) -> onnx.ModelProto:
    """Return a file's network in float.

    Args:
        model: with QuantizeLinear and DequantizeLinear.
        runtime: that unpacks weights.

    Raises:
        ExportError: If nothing in it is quantized so, or integers are computed with otherwise.
    """
    graph = model.graph
    of_inputs = depending(graph)
    of_weights = [
        n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in of_inputs
    ]
    values = codes_in(model, [node.output[0] for node in of_weights], runtime)
    known = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    rounded = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in of_inputs]
    if not rounded:
        raise ExportError(
            "no value is quantized with QuantizeLinear, so that nothing is known of it in float"
        )
    dropped = {id(node) for node in of_weights}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if id(node) in dropped:
            continue
        if node.op_type == "QuantizeLinear" and node.input[0] in of_inputs:
            nodes.append(_relu_or_identity(node, known))
        elif node.op_type == "DequantizeLinear" or _clips_bytes(node, known):
            nodes.append(_identity(node))
        elif _pads_bytes(node, known):
            nodes.append(_padding_with_zeros(node))
        else:
            nodes.append(node)
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.metadata_props[:], made.graph.node[:], made.graph.quantization_annotation[:]
    del made.graph.value_info[:]
    made.graph.initializer.extend(weights)
    made.graph.node.extend(nodes_behind(nodes, [output.name for output in graph.output]))
    _drop_unused(made.graph)
    return made


def _relu_or_identity(node: onnx.NodeProto, known: dict[str, Array]) -> onnx.NodeProto:
    """Return what QuantizeLinear does beside rounding: where bytes begin at 0, a ReLU."""
    zero_point = known.get(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    from_zero = zero_point is not None and zero_point.dtype == np.uint8 and not zero_point.any()
    operator = "Relu" if from_zero else "Identity"
    return helper.make_node(operator, [node.input[0]], [node.output[0]], name=node.name)


def _identity(node: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)


def _clips_bytes(node: onnx.NodeProto, known: dict[str, Array]) -> bool:
    """Tell whether a node is a Clip with bounds of whole numbers."""
    if node.op_type != "Clip":
        return False
    bounds = [known[name] for name in node.input[1:] if name in known]
    return bool(bounds) and all(bound.dtype in (np.uint8, np.int8) for bound in bounds)


def _pads_bytes(node: onnx.NodeProto, known: dict[str, Array]) -> bool:
    """Tell whether a node is a Pad with a code around, which is that of zero."""
    around = known.get(node.input[2]) if node.op_type == "Pad" and len(node.input) > 2 else None
    return around is not None and around.dtype in (np.uint8, np.int8)


def _padding_with_zeros(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a Pad of numbers: without a value of its own it pads with 0."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[2] = ""
    return made


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out initializers that no node reads."""
    read = {name for node in graph.node for name in node.input}
    read |= {output.name for output in graph.output}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)

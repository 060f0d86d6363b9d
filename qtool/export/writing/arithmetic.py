"""QuantizeLinear and DequantizeLinear as Div, Round, Clip and Mul on float numbers.

For readers that know neither, or compute them otherwise. Codes are whole float numbers, which are
exact; a value that is rounded goes through the very operations that the runtime's kernels have, so
that it becomes the same code: x / s, rounded half to even, the zero point added, cut off. Weights
are looked up in tables of float numbers, and multiplied by their scales; biases are float.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.export.writing.annotation import Annotation
from qtool.export.writing.insert import insert_constant, insert_node
from qtool.export.writing.pairs import number_of, replace_value

BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
ENDS = (0.0, 255.0)  # of what QuantizeLinear puts out
ZERO = "zero"  # name of the number, where no other constant is 0


def to_arithmetic(graph: ir.Graph) -> None:
    """Let a graph do without QuantizeLinear, DequantizeLinear and codes that are bytes.

    Args:
        graph: with the weights as the target has them; nodes that nothing reads are left behind.
    """
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and _is_weight(node):
            _multiply_weight(graph, node)
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            _round(graph, node)
        elif node.op_type == "DequantizeLinear":
            _multiply(node)
    _codes_as_float(graph)


def with_zero_points(annotations: Sequence[Annotation], graph: ir.Graph) -> list[Annotation]:
    """Return annotations in which zero points that are gone are the graph's number 0."""
    if all(note.zero_point in graph.initializers for note in annotations):
        return list(annotations)
    zeros = (name for name, value in graph.initializers.items() if _is_zero(value))
    zero = next(zeros, "") or _subtract_zero(graph)
    return [
        note if note.zero_point in graph.initializers else replace(note, zero_point=zero)
        for note in annotations
    ]


def _is_zero(value: ir.Value) -> bool:
    stored = value.const_value
    if stored is None or stored.dtype != ir.DataType.FLOAT or stored.shape.rank():
        return False
    return not stored.numpy() and bool(value.consumers())


def _subtract_zero(graph: ir.Graph) -> str:
    """Subtract 0 from the codes of a weight, so that there is a 0 to be named; return its name."""
    zero = insert_constant(graph, ZERO, np.array(0, np.float32))
    mul = next(node for node in graph if node.op_type == "Mul")
    given = mul.inputs[0]
    assert given is not None
    mul.replace_input_with(0, insert_node("Sub", [given, zero], f"{given.name}.steps", mul))
    return ZERO


def _is_weight(node: ir.Node) -> bool:
    """Tell whether a node dequantizes a weight or bias: by a scale for each channel."""
    scale = node.inputs[1]
    constant = None if scale is None else scale.const_value
    return constant is not None and constant.shape.rank() > 0


def _multiply_weight(graph: ir.Graph, node: ir.Node) -> None:
    """Let codes be multiplied by the scales of their channels; a bias becomes float numbers."""
    codes, scale, *_ = node.inputs
    made = node.outputs[0]
    assert codes is not None
    assert scale is not None
    stored, scales = codes.const_value, number_of(scale).reshape(-1)
    if stored is not None and stored.dtype == ir.DataType.INT32:
        real = np.multiply(stored.numpy().astype(np.float32), scales, dtype=np.float32)
        new = insert_constant(graph, f"{made.name}.float", real)
    else:
        if stored is not None:  # of 8 bits, which are small enough as they are
            to = ir.DataType.FLOAT
            codes = insert_node("Cast", [codes], f"{codes.name}.float", node, to=to)
        axis = node.attributes.get("axis")
        shape = [1] * len(made.shape or ())
        shape[1 if axis is None else axis.as_int()] = scales.size
        new = insert_node("Mul", [codes, _shaped(graph, scale, shape)], f"{made.name}.float", node)
    _take_over(node, new)


def _shaped(graph: ir.Graph, scale: ir.Value, shape: list[int]) -> ir.Value:
    """Return the scales of channels, in a shape that is multiplied; the first use has the name."""
    scales = number_of(scale)
    if scales.ndim > 1 and list(scales.shape) != shape:
        name = f"{scale.name}.{'x'.join(map(str, shape))}"
        return graph.initializers.get(name) or insert_constant(graph, name, scales.reshape(shape))
    scale.const_value = ir.tensor(scales.reshape(shape), name=scale.name)
    scale.shape = ir.Shape(shape)
    return scale


def _round(graph: ir.Graph, node: ir.Node) -> None:
    """Write x / s, rounded, plus the zero point, cut off at the ends of a byte or the grid."""
    given, scale, zero = node.inputs
    assert given is not None
    assert scale is not None
    assert zero is not None
    made = node.outputs[0]
    steps = given
    if float(number_of(scale)) != 1:
        steps = insert_node("Div", [given, scale], f"{made.name}.steps", node)
    codes = insert_node("Round", [steps], f"{made.name}.whole", node)
    if number_of(zero):
        codes = insert_node("Add", [codes, zero], f"{made.name}.moved", node)
    clips = [reader for reader in made.consumers() if reader.op_type == "Clip"]
    if made.is_graph_output() or len(clips) < len(made.consumers()):
        name = f"{made.name}.cut"
        ends = [_constant(graph, end) for end in ENDS]
        if not number_of(zero):
            ends[0] = zero
        codes = insert_node("Clip", [codes, *ends], name, node)
    for clip in clips:
        low = clip.inputs[1]
        if low is not None and not number_of(zero) and not number_of(low):
            clip.replace_input_with(1, zero)
    _take_over(node, codes)


def _multiply(node: ir.Node) -> None:
    """Write (codes - zero point) s."""
    codes, scale, zero = node.inputs
    assert codes is not None
    assert scale is not None
    assert zero is not None
    made = node.outputs[0]
    if number_of(zero):
        codes = insert_node("Sub", [codes, zero], f"{made.name}.steps", node)
    _take_over(node, insert_node("Mul", [codes, scale], f"{made.name}.float", node))


def _take_over(node: ir.Node, new: ir.Value) -> None:
    """Let a value stand in the place of a node's output, under its name."""
    old = node.outputs[0]
    name, kind = old.name, ir.TensorType(ir.DataType.FLOAT)
    replace_value(old, new)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    if new.producer() is not None:
        new.name = name
    new.type, new.shape = kind, new.shape or old.shape


def _constant(graph: ir.Graph, number: float) -> ir.Value:
    name = f"byte.{number:g}"
    found = graph.initializers.get(name)
    return found or insert_constant(graph, name, np.array(number, np.float32))


def _codes_as_float(graph: ir.Graph) -> None:
    """Turn all constants that are bytes to float, but bytes that are unpacked, or Cast."""
    for node in list(graph):
        to = node.attributes.get("to") if node.op_type == "Cast" else None
        if to is not None and ir.DataType(to.as_int()) in BYTES:
            source = node.inputs[0]
            assert source is not None
            _take_over(node, source)
    for value in list(graph.initializers.values()):
        stored = value.const_value
        readers = value.consumers()
        if stored is None or not readers or all(node.op_type == "Cast" for node in readers):
            continue
        if stored.dtype in BYTES or _is_table(value):
            value.const_value = ir.tensor(stored.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        for value in node.outputs:
            if value.dtype in BYTES:
                value.type = ir.TensorType(ir.DataType.FLOAT)


def _is_table(value: ir.Value) -> bool:
    """Tell whether a constant is what bytes of codes are looked up in."""
    stored = value.const_value
    return (
        stored is not None
        and stored.dtype == ir.DataType.INT32
        and stored.shape.rank() == 2
        and all(node.op_type == "Gather" and node.inputs[0] is value for node in value.consumers())
    )

"""Weights and biases that qtool calls float stay float in the runtime.

A runtime may quantize a float weight by itself, to codes of its own, where it stands between a
DequantizeLinear and a QuantizeLinear, or comes to stand there once it has folded a batch norm into
it. ONNX Runtime does so from 1.21 on (WeightBiasQuantization; biases from 1.20 on), for an input
that has one scale. So such an input is dequantized with its scale and zero point written once for
each channel: the same values and nearly the same time, but no pattern that a runtime looks for.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.export.targets.target import Array
from qtool.export.writing.insert import insert_constant, insert_node

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVABLE = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad")
"""Operators that a runtime moves quantization across, or folds into the next one."""
FOLDED = ("BatchNormalization", "Add", "Sub", "Mul", "Div")
"""Operators that a runtime folds into a weight and bias, where their other sides are constant."""
CLIPS = ("Relu", "Clip")


def keep_float(graph: ir.Graph) -> None:
    """Write the inputs of float weights so that no runtime takes them for integer layers.

    Left as they are: weights under DequantizeLinear with an integer bias and no batch norm after
    them, and what is not followed by QuantizeLinear.
    """
    for node in list(graph):
        if node.op_type not in WEIGHTED or not _is_float(node):
            continue
        chain = _chain_from_dequantize(node)
        if chain is not None and any(_reaches_quantize(value) for value in node.outputs):
            _dequantize_by_channel(graph, node, chain)


def _is_float(node: ir.Node) -> bool:
    """Tell whether a weight or bias is float, or becomes so by the batch norm that follows."""
    constants = any(_floating(value) for value in node.inputs[1:])
    return constants or any(n.op_type == "BatchNormalization" for n in node.successors())


def _floating(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def _chain_from_dequantize(node: ir.Node) -> list[ir.Node] | None:
    """Return the nodes from DequantizeLinear with one scale to a node's input, or None."""
    chain: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and (maker := value.producer()) is not None:
        chain.insert(0, maker)
        if maker.op_type == "DequantizeLinear":
            scale = maker.inputs[1]
            known = scale is not None and scale.const_value is not None
            return chain if known and _constant(scale).size == 1 else None
        if maker.op_type not in MOVABLE:
            return None
        value = maker.inputs[0]
    return None


def _reaches_quantize(value: ir.Value, *, clipped: bool = False) -> bool:
    """Tell whether a value is quantized, perhaps after what a runtime folds or moves."""
    for user in value.consumers():
        if user.op_type == "QuantizeLinear":
            return True
        clips = clipped or user.op_type in CLIPS
        if (user.op_type in (*CLIPS, *MOVABLE) or (not clipped and _folds(user, value))) and any(
            _reaches_quantize(made, clipped=clips) for made in user.outputs
        ):
            return True
    return False


def _folds(user: ir.Node, value: ir.Value) -> bool:
    """Tell whether an operator may be folded into what makes its input `value`."""
    others = [given.const_value for given in user.inputs if given not in (None, value)]
    sizes = [other.size for other in others if other is not None]
    if user.op_type not in FOLDED or not sizes or len(sizes) < len(others):  # x + x has no others
        return False
    # one number is no bias: a quantizer's half step stays where it is
    return user.op_type not in ("Add", "Sub") or max(sizes) > 1


def _dequantize_by_channel(graph: ir.Graph, node: ir.Node, chain: Sequence[ir.Node]) -> None:
    """Give a node an input of its own, dequantized with scales for each channel."""
    source, *moved = chain
    codes, scale, zero = source.inputs
    assert codes is not None
    shape = source.outputs[0].shape
    sizes = [size if isinstance(size, int) else 0 for size in shape] if shape is not None else []
    axis = max(range(len(sizes)), key=lambda i: (i == 1 and sizes[i] > 1, sizes[i]), default=0)
    name = f"{node.outputs[0].name}.{source.outputs[0].name}"
    zeros = np.zeros((), np.uint8) if zero is None else _constant(zero)
    if sizes and sizes[axis] > 1:
        parts = {"scales": (scale, _constant(scale)), "zero_points": (zero, zeros)}
        columns = [
            _by_channel(f"{name}.{label}", given, number, sizes[axis], node)
            for label, (given, number) in parts.items()
        ]
        value = insert_node("DequantizeLinear", [codes, *columns], name, node, axis=axis)
    else:  # no axis has two known channels: DequantizeLinear, step by step
        number = insert_node("Cast", [codes], f"{name}.number", node, to=ir.DataType.FLOAT)
        offset = insert_constant(graph, f"{name}.zero", zeros.astype(np.float32))
        steps = insert_node("Sub", [number, offset], f"{name}.steps", node)
        step = insert_constant(graph, f"{name}.scale", _constant(scale))
        value = insert_node("Mul", [steps, step], name, node)
    value.shape, value.type = shape, ir.TensorType(ir.DataType.FLOAT)
    for index, old in enumerate(moved):
        outputs = [
            ir.Value(name=f"{name}.{index}", shape=made.shape, type=made.type)
            for made in old.outputs
        ]
        copy = ir.Node(
            old.domain, old.op_type, [value, *old.inputs[1:]], old.attributes.values(),
            outputs=outputs, name=f"{name}.{index}.{old.op_type}",
        )  # fmt: skip
        graph.insert_before(node, copy)
        value = copy.outputs[0]
    node.replace_input_with(0, value)


def _by_channel(
    name: str, given: ir.Value | None, number: Array, size: int, before: ir.Node
) -> ir.Value:
    """Return a number once for each channel, [size].

    One that no QuantizeLinear reads stays in the graph, where annotations name it.
    """
    graph = before.graph
    assert graph is not None
    quantizes = given is not None and any(n.op_type == "QuantizeLinear" for n in given.consumers())
    if given is None or quantizes:
        return insert_constant(graph, name, np.full(size, number, number.dtype))
    sizes = insert_constant(graph, f"{name}.size", np.array([size], np.int64))
    return insert_node("Expand", [given, sizes], name, before)


def _constant(value: ir.Value | None) -> Array:
    """Return the one number that a value holds, []."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().reshape(())

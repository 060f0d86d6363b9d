"""QuantizeLinear and DequantizeLinear nodes of a traced graph, and what is around them, read."""

import onnx_ir as ir

from qtool.export.targets.target import Array

BYTE = (0, 255)


def dequantize_before(node: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear, with one scale of rank 0, that makes a node's first input."""
    return dequantizer(node.inputs[0]) if node.inputs else None


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear, with one scale of rank 0, that makes a value."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "DequantizeLinear" or not is_per_tensor(maker):
        return None
    return maker


def is_per_tensor(node: ir.Node) -> bool:
    """Tell whether a node quantizes or dequantizes by one scale and zero point, of rank 0."""
    given = node.inputs[1:]
    constants = [value.const_value for value in given if value is not None]
    return len(given) == 2 and all(c is not None and not c.shape.rank() for c in constants)


def parts_of(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return what a node quantizes or dequantizes, its scale and its zero point."""
    given, scale, zero = node.inputs
    assert given is not None
    assert scale is not None
    assert zero is not None
    return given, scale, zero


def same_pair(node: ir.Node, other: ir.Node) -> bool:
    """Tell whether two nodes quantize or dequantize by the same scale and zero point."""
    pairs = zip(node.inputs[1:], other.inputs[1:], strict=True)
    numbers = [(number_of(one), number_of(another)) for one, another in pairs]
    return all(one.dtype == another.dtype and one == another for one, another in numbers)


def number_of(value: ir.Value | None) -> Array:
    """Return the numbers of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def number_or_none(value: ir.Value | None) -> Array | None:
    """Return the numbers of a constant, None of what is computed."""
    known = None if value is None else value.const_value
    return None if known is None else known.numpy()


def quantizer_of(node: ir.Node) -> tuple[ir.Node, tuple[int, int]]:
    """Return the QuantizeLinear that makes a value's codes, and the smallest and largest code."""
    limits, maker = BYTE, node.inputs[0].producer() if node.inputs[0] is not None else None
    while maker is not None and maker.op_type != "QuantizeLinear":
        if maker.op_type == "Clip":
            low, high = (int(number_of(value)) for value in maker.inputs[1:])
            limits = (low, high)
        source = maker.inputs[0]
        maker = None if source is None else source.producer()
    assert maker is not None
    return maker, limits


def ceiled(given: ir.Value) -> tuple[ir.Value, float, float] | None:
    """Return what is divided, rounded up and cut off, and its ends in steps, or None."""
    clip = given.producer()
    up = clip.inputs[0].producer() if clip is not None and clip.inputs[0] is not None else None
    if clip is None or up is None or (clip.op_type, up.op_type) != ("Clip", "Ceil"):
        return None
    divide = up.inputs[0].producer() if up.inputs[0] is not None else None
    if divide is None or divide.op_type != "Div" or divide.inputs[0] is None:
        return None
    low, high = (float(number_of(value)) for value in clip.inputs[1:])
    return divide.inputs[0], low, high


def without(given: ir.Value, number: float) -> ir.Value:
    """Return what a number was added to."""
    maker = given.producer()
    if maker is None or maker.op_type != "Add":
        return given
    other, value = number_or_none(maker.inputs[1]), maker.inputs[0]
    added = other is not None and not other.ndim and float(other) == number
    return value if value is not None and added else given


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of a value have another; an output of the graph keeps its name."""
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.inner"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

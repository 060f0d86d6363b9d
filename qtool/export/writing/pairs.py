"""QuantizeLinear and DequantizeLinear nodes of a traced graph, read."""

import onnx_ir as ir

from qtool.export.targets.target import Array


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


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of a value have another; an output of the graph keeps its name."""
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.inner"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

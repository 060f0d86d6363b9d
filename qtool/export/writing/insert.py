"""New constants and nodes in a traced graph."""

import onnx_ir as ir

from qtool.export.targets.target import Array


def insert_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Return a new constant of a graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def insert_node(
    operator: str,
    inputs: list[ir.Value],
    name: str,
    before: ir.Node,
    **attributes: int,
) -> ir.Value:
    """Put a new node before another; return its output, which is called `name`."""
    node = ir.node(operator, inputs, attributes=attributes, name=f"{name}.{operator}")
    node.outputs[0].name = name
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node.outputs[0]

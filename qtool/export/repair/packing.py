"""Weights that other tools unpacked, packed again in the form that they had."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.export.proof.stored_weights import StoredWeight
from qtool.export.targets.target import Array, Target
from qtool.export.writing.insert import insert_constant
from qtool.export.writing.layer_metadata import LayerMetadata, zero_points
from qtool.export.writing.packing import choose_layouts
from qtool.export.writing.weights import LAYER, ROLE, WeightWriter, part_of, to_proto
from qtool.integer.layers import LayerSpec

ASIDE = ".aside"


def pack_again(
    model: onnx.ModelProto,
    undone: Mapping[str, StoredWeight],
    layers: Mapping[str, LayerMetadata],
    specs: Mapping[str, LayerSpec],
    target: Target,
    *,
    among: Mapping[str, StoredWeight],
) -> onnx.ModelProto:
    """Return a model with weights packed again.

    Args:
        model: the file, which stays as it is.
        undone: layers whose weight stands there unpacked, and where.
        layers: what its metadata say of each layer.
        specs: what each layer is.
        target: that the file was written for.
        among: all layers, which tables are chosen for together.
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)  # its tensors are named anew in place
    made = ir.from_proto(own)
    given = {n: _dequantize(made.graph, n, w, layers[n]) for n, w in undone.items()}
    before = _set_aside(made.graph)
    writer = WeightWriter(made, target)
    codes = {n: (weight.codes.astype(np.int8), layers[n].bits) for n, weight in among.items()}
    layouts = choose_layouts(codes) if target.packed else {}
    for name, weight in undone.items():
        saturates = bool(zero_points(layers[name]).any())
        writer.write(specs[name], layouts.get(name), saturates=saturates)
        if weight.form == "float":
            writer.unpack_to_float(name, len(layers[name].shape))
        _leave_no_other(made.graph, given[name])
    _put_back(made.graph, before)
    RemoveUnusedNodesPass()(made)
    for node in made.graph:
        node.metadata_props.pop(LAYER, None)
        node.metadata_props.pop(ROLE, None)
    return to_proto(made)


def _set_aside(graph: ir.Graph) -> dict[str, ir.Value]:
    """Give all constants of a graph other names, so that new ones may have theirs; return them."""
    found = dict(graph.initializers)
    for name, value in found.items():
        value.name = f"{name}{ASIDE}"
    return found


def _put_back(graph: ir.Graph, before: Mapping[str, ir.Value]) -> None:
    """Give constants their names back; one that is there anew is read from there."""
    for name, value in before.items():
        new, numbers = graph.initializers.get(name), value.const_value
        if new is None:
            value.name = name
        elif numbers is not None and new.const_value is not None:
            same = _same(new.const_value.numpy(), numbers.numpy())
            if same:
                ir.convenience.replace_all_uses_with(value, new)


def _leave_no_other(graph: ir.Graph, pair: tuple[ir.Value, ir.Node]) -> None:
    """Let what else reads a plain weight, such as a runtime's kernel, read what is unpacked."""
    old, dequantize = pair
    codes = dequantize.inputs[0]
    if codes is not None and old.uses():
        ir.convenience.replace_all_uses_with(old, codes)
    if dequantize.graph is not None and not dequantize.outputs[0].uses():
        graph.remove(dequantize, safe=True)


def _dequantize(
    graph: ir.Graph, name: str, weight: StoredWeight, layer: LayerMetadata
) -> tuple[ir.Value, ir.Node]:
    """Put DequantizeLinear of a layer's codes where its weight is read, marked as qtool's own.

    Returns:
        What was read before, and DequantizeLinear.
    """
    made = {value.name: value for node in graph for value in node.outputs}
    old = made[weight.tensor] if weight.form == "unpacked" else graph.initializers[weight.tensor]
    integers = weight.form == "integers"
    readers = [n for n in old.consumers() if integers and n.op_type == "DequantizeLinear"]
    replaced = [old] if weight.form == "float" else [node.outputs[0] for node in readers]
    called = readers[0].name if readers else f"{name}/DequantizeLinear"
    old.name = f"{part_of(name, 'codes')}.given"
    inputs = [
        insert_constant(graph, f"{part_of(name, 'codes')}.again", weight.codes),
        _constant(graph, layer.tensors["scale"], layer.scale),
        _constant(graph, layer.tensors["zero_point"], np.zeros(layer.scale.shape, np.int8)),
    ]
    node = ir.node("DequantizeLinear", inputs, attributes={"axis": layer.axis or 0}, name=called)
    node.metadata_props.update({LAYER: name, ROLE: "weight"})
    real, new = node.outputs[0], [node]
    real.name = f"{part_of(name, 'codes')}.real"
    if weight.transposed:
        turn = ir.node("Transpose", [real], attributes={"perm": [1, 0]}, name=f"{name}/Transpose")
        real = turn.outputs[0]
        real.name = part_of(name, "weight_by_columns")
        new.append(turn)
    graph.insert_before(graph[0], new)
    for value in replaced:
        ir.convenience.replace_all_uses_with(value, real)
    graph.remove(readers, safe=True)
    return old, node


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Return a constant of a graph under a name, or beside it where that has other numbers."""
    free = name
    while free in graph.initializers:
        there = graph.initializers[free].const_value
        if there is not None and _same(there.numpy(), array):
            return graph.initializers[free]
        free = f"{free}.again"
    return insert_constant(graph, free, array)


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)

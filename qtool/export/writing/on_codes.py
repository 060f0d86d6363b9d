"""Values that lie on a grid stay bytes from one integer operator to the next.

Rewrites of a traced graph in which values carry one scale and one zero point, both of rank 0:

- channels are shuffled with channels innermost, as the kernels hold them: Transpose, Reshape,
  Transpose of the last two axes, Reshape, Transpose;
- an operator that passes values on has QuantizeLinear and DequantizeLinear behind it, too, with the
  same scale and zero point, and no Clip: the runtime drops both pairs and moves bytes;
- what is dequantized and quantized again as it was is left as it was; to another scale, it goes
  through an operator for which runtimes have a kernel on bytes, and which changes nothing else.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.export.writing.clips import clip_behind_pools, saturate_instead
from qtool.export.writing.insert import insert_constant, insert_node
from qtool.export.writing.node_names import owner_of
from qtool.export.writing.pairs import (
    dequantize_before,
    dequantizer,
    is_per_tensor,
    number_of,
    parts_of,
    replace_value,
    same_pair,
)
from qtool.export.writing.weights import LAYER, REPEATED, ROLE

PASSES_ON = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Slice",
    "Gather",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
)
"""Operators whose results are values of their first input."""
TO_CHANNELS_LAST, TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def keep_codes(graph: ir.Graph) -> None:
    """Apply all rewrites of this file; a new node is named after the one whose value it reads."""
    names = {node: str(node.name) for node in graph}
    shuffle_innermost(graph)
    move_codes(graph)
    clip_behind_pools(graph)
    saturate_instead(graph)
    requantize(graph)
    taken, used = set(names.values()), Counter[str]()
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if node not in names:
            owner = next((owner_of(names[maker]) for maker in makers if maker is not None), "")
            name = node.name = f"{owner or 'model'}/{node.op_type}"
            while node.name in taken:
                used[name] += 1
                node.name = f"{name}.{used[name]}"
            names[node] = node.name
            taken.add(node.name)


def shuffle_innermost(graph: ir.Graph) -> None:
    """Write channel shuffles, [B, g, c, H, W] to [B, c, g, H, W], with channels innermost."""
    for split in list(graph):
        swap = _only_reader(split, "Reshape")
        merge = _only_reader(swap, "Transpose") if swap is not None else None
        if swap is None or merge is None or merge.op_type != "Reshape":
            continue
        x, parts, made = split.inputs[0], split.outputs[0].shape, merge.outputs[0].shape
        if x is None or x.shape is None or parts is None or made is None:
            continue
        if _is_weight(x):  # of a transposed convolution in groups: its axes are no batch of images
            continue
        if _permutation(swap) != [0, 2, 1, 3, 4] or len(x.shape) != 4 or len(made) != 4:
            continue
        groups, channels = parts[1], parts[2]
        same = list(x.shape[2:]) == list(parts[3:]) == list(made[2:])
        if not isinstance(groups, int) or not isinstance(channels, int) or not same:
            continue
        name = str(merge.outputs[0].name)
        sizes = {"apart": [0, 0, 0, groups, channels], "together": [0, 0, 0, groups * channels]}
        shapes = {  # 0: as it is
            label: insert_constant(graph, f"{name}.{label}_shape", np.array(size, np.int64))
            for label, size in sizes.items()
        }
        y = _transposed(x, f"{name}.last", split, TO_CHANNELS_LAST)
        y = insert_node("Reshape", [y, shapes["apart"]], f"{name}.apart", split)
        y = _transposed(y, f"{name}.swapped", split, [0, 1, 2, 4, 3])
        y = insert_node("Reshape", [y, shapes["together"]], f"{name}.together", split)
        y = _transposed(y, f"{name}.first", split, TO_CHANNELS_FIRST)
        y.shape, y.type = merge.outputs[0].shape, merge.outputs[0].type
        replace_value(merge.outputs[0], y)
        graph.remove([merge, swap, split], safe=True)


def _is_weight(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.metadata_props.get(ROLE) == "weight"


def move_codes(graph: ir.Graph) -> None:
    """Let operators that pass values on move bytes, in the order of the graph, one after another.

    The scale and zero point of a value are put behind them; zeros around it are the code of zero.
    """
    for node in list(graph):
        source = dequantize_before(node)
        if source is None:
            continue
        if node.op_type == "Pad" and _pads_with_zeros(node):
            _pad_codes(graph, node, source)
        elif _passes_on(node):
            _repeat_pair(graph, node, source)


def _pad_codes(graph: ir.Graph, node: ir.Node, source: ir.Node) -> None:
    """Pad a value with zeros before it is dequantized."""
    codes, scale, zero = parts_of(source)
    name = str(node.outputs[0].name)
    padded = _like(node, [codes, node.inputs[1], zero, *node.inputs[3:]], f"{name}.codes")
    graph.insert_before(node, padded)
    real = insert_node("DequantizeLinear", [padded.outputs[0], scale, zero], f"{name}.real", node)
    real.shape, real.type = node.outputs[0].shape, node.outputs[0].type
    replace_value(node.outputs[0], real)
    graph.remove(node, safe=True)


def _repeat_pair(graph: ir.Graph, node: ir.Node, source: ir.Node) -> None:
    """Put the scale and zero point of a value behind an operator that passes it on."""
    scale, zero = parts_of(source)[1:]
    for made in node.outputs:
        readers = list(made.uses())
        if not readers:
            continue
        codes = ir.node("QuantizeLinear", [made, scale, zero], name=f"{made.name}.repeated")
        real = ir.node("DequantizeLinear", [*codes.outputs, scale, zero])
        for new, name in ((codes, f"{made.name}.codes"), (real, f"{made.name}.real")):
            new.name, new.outputs[0].name = f"{name}.{new.op_type}", name
        owner = source.metadata_props.get(LAYER, "").removesuffix(REPEATED)
        real.metadata_props.update({LAYER: f"{owner}{REPEATED}", ROLE: "real_input"})
        real.outputs[0].shape, real.outputs[0].type = made.shape, made.type
        graph.insert_after(node, [codes, real])
        for reader, index in readers:
            reader.replace_input_with(index, real.outputs[0])


def requantize(graph: ir.Graph) -> None:
    """Leave out what quantizes a value as it was, and let bytes change their scale as bytes."""
    for node in list(graph):
        source = dequantize_before(node) if node.op_type == "QuantizeLinear" else None
        if source is None or not is_per_tensor(node):
            continue
        if same_pair(node, source):
            for reader in list(node.outputs[0].consumers()):
                if reader.op_type == "DequantizeLinear" and same_pair(reader, source):
                    replace_value(reader.outputs[0], source.outputs[0])
                    graph.remove(reader, safe=True)
            replace_value(node.outputs[0], parts_of(source)[0])
            graph.remove(node, safe=True)
        else:
            node.replace_input_with(0, _again(source, node))


def _again(source: ir.Node, node: ir.Node) -> ir.Value:
    """Put an operator before a QuantizeLinear that leaves real values as they are; return those.

    Zero added, which takes a quarter of the time of a concatenation of one, wherever float32 cannot
    round the addition's (q - z) float32(s / s') to another integer than (q - z) s / s'.
    """
    x, name = source.outputs[0], f"{node.outputs[0].name}.again"
    if _near_ties(source, node):
        made = insert_node("Concat", [x], name, node, axis=1)
    else:
        numbers = {"zero": np.uint8(0), "unit": np.float32(1), "origin": np.uint8(0)}
        assert node.graph is not None
        none = [
            insert_constant(node.graph, f"{name}.{label}", np.array(number))
            for label, number in numbers.items()
        ]
        nothing = insert_node("DequantizeLinear", none, f"{name}.nothing", node)
        made = insert_node("Add", [x, nothing], name, node)
    made.shape, made.type = x.shape, x.type
    return made


def _near_ties(source: ir.Node, node: ir.Node) -> bool:
    """Tell whether a code lies so close to the middle of two new ones that float32 may err."""
    (step, zero), (new_step, new_zero) = (
        [float(number_of(value)) for value in given.inputs[1:]] for given in (source, node)
    )
    steps = (np.arange(256) - zero) * step / new_step
    inside = steps[(steps + new_zero > -1) & (steps + new_zero < 256)]
    if not inside.size:
        return False
    error = 2.0**-21 * (np.abs(inside).max() + abs(zero * step / new_step) + new_zero)
    return bool((np.abs(inside - np.floor(inside) - 0.5) <= error).any())


def _passes_on(node: ir.Node) -> bool:
    """Tell whether each number that an operator puts out is one that it was given."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    if node.op_type == "Concat":  # a rolled image, for one; a join has QuantizeLinear behind it
        sources = [dequantizer(value) for value in node.inputs]
        first, readers = sources[0], node.outputs[0].consumers()
        one_grid = all(s is not None and first is not None and same_pair(s, first) for s in sources)
        return one_grid and not any(reader.op_type == "QuantizeLinear" for reader in readers)
    return node.op_type in PASSES_ON


def _pads_with_zeros(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or (value.const_value is not None and not value.const_value.numpy().any())


def _only_reader(node: ir.Node, operator: str) -> ir.Node | None:
    """Return the one node that reads a node of that operator, or None."""
    readers = list(node.outputs[0].consumers()) if node.op_type == operator else []
    return readers[0] if len(readers) == 1 and not node.outputs[0].is_graph_output() else None


def _permutation(node: ir.Node) -> Sequence[int]:
    order = node.attributes.get("perm")
    return list(order.as_ints()) if order is not None else []


def _transposed(x: ir.Value, name: str, before: ir.Node, order: list[int]) -> ir.Value:
    """Put a Transpose before a node; return its output."""
    value = insert_node("Transpose", [x], name, before)
    maker = value.producer()
    assert maker is not None
    maker.attributes["perm"] = ir.AttrInt64s("perm", order)
    return value


def _like(node: ir.Node, inputs: Sequence[ir.Value | None], name: str) -> ir.Node:
    """Return a node of the same operator and attributes with other inputs."""
    copy = ir.Node(
        node.domain, node.op_type, inputs, node.attributes.values(), name=f"{name}.{node.op_type}"
    )
    copy.outputs[0].name = name
    return copy

"""Fewer Clips on bytes, which cost a pass over the values each.

A grid below 8 bits ends before a byte does, and QuantizeLinear has a Clip behind it. None is needed
where a value that was quantized before can leave the new grid at one end only: bytes saturate at
that end, if the zero point puts it at 0 or 255. And what is pooled by maximum is clipped behind
that, where there is less of it.
"""

import numpy as np
import onnx_ir as ir
import torch

from qtool.export.writing.insert import insert_constant
from qtool.export.writing.pairs import (
    dequantize_before,
    dequantizer,
    is_per_tensor,
    number_of,
    replace_value,
    same_pair,
)
from qtool.export.writing.weights import WIDE
from qtool.numerics.saturation import can_saturate

HIGHEST = 255
SURE = 0.499  # steps beyond an end that are rounded to it, whatever float32 makes of a tie


def saturate_instead(graph: ir.Graph) -> None:
    """Let bytes saturate where codes change their scale, in place of a Clip."""
    for clip in list(graph):
        quantize = _clipped(clip)
        source = None if quantize is None else dequantize_before(quantize)
        if quantize is None or source is None:
            continue
        pairs = [node for node in clip.outputs[0].consumers() if dequantizer(node.outputs[0])]
        as_given = all(same_pair(quantize, pair) for pair in pairs)  # not the sign of {-1, +1}
        all_fit = len(pairs) == len(clip.outputs[0].consumers()) and all(map(_sums_fit, pairs))
        if not as_given or not all_fit:
            continue
        shift = _shift(source, quantize, clip)
        if shift is None:
            continue
        zero = int(number_of(quantize.inputs[2])) + shift
        name = f"{clip.outputs[0].name}.zero_point"
        moved = insert_constant(graph, name, np.array(zero, np.uint8))
        for node in (quantize, *pairs):
            node.replace_input_with(2, moved)
        for node in pairs:
            node.metadata_props[WIDE] = "1"
        replace_value(clip.outputs[0], quantize.outputs[0])
        graph.remove(clip, safe=True)


def clip_behind_pools(graph: ir.Graph) -> None:
    """Put a Clip on codes that are only pooled by maximum behind the poolings."""
    for clip in list(graph):
        quantize, made = _clipped(clip), clip.outputs[0]
        pairs = list(made.consumers())
        if quantize is None or not pairs or not all(dequantizer(p.outputs[0]) for p in pairs):
            continue
        pooled = [_pooled(node) for pair in pairs for node in pair.outputs[0].consumers()]
        behind = [node for node in pooled if node is not None]
        given_out = any(pair.outputs[0].is_graph_output() for pair in pairs)
        if not behind or len(behind) < len(pooled) or given_out:
            continue
        for repeated in behind:
            codes = repeated.outputs[0]
            readers = list(codes.uses())
            cut = ir.node("Clip", [codes, *clip.inputs[1:]], name=f"{codes.name}.Clip")
            cut.outputs[0].name = f"{codes.name}.clipped"
            graph.insert_after(repeated, cut)
            for reader, index in readers:
                reader.replace_input_with(index, cut.outputs[0])
        for pair in pairs:
            pair.metadata_props[WIDE] = "1"
        replace_value(made, quantize.outputs[0])
        graph.remove(clip, safe=True)


def _pooled(pool: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads a pooling by maximum and has its input's scale."""
    readers, source = pool.outputs[0].consumers(), dequantize_before(pool)
    if pool.op_type != "MaxPool" or len(readers) != 1 or source is None:
        return None
    quantize = readers[0]
    repeats = quantize.op_type == "QuantizeLinear" and is_per_tensor(quantize)
    return quantize if repeats and same_pair(quantize, source) else None


def _clipped(clip: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear whose bytes a Clip alone reads, with limits that are known."""
    if clip.op_type != "Clip" or len(clip.inputs) != 3 or clip.outputs[0].is_graph_output():
        return None
    given = clip.inputs[0]
    maker = given.producer() if given is not None else None
    if given is None or maker is None or maker.op_type != "QuantizeLinear":
        return None
    if given.is_graph_output() or len(given.uses()) != 1 or len(maker.inputs) != 3:
        return None
    known = [value is not None and value.const_value is not None for value in clip.inputs[1:]]
    known += [value is not None and value.const_value is not None for value in maker.inputs[1:]]
    if not all(known) or number_of(maker.inputs[2]).dtype != np.uint8:
        return None
    return maker


def _shift(source: ir.Node, quantize: ir.Node, clip: ir.Node) -> int | None:
    """Return what the zero point is moved by, None where values leave the grid at both ends."""
    (step, zero), (new_step, new_zero) = (
        [float(number_of(value)) for value in node.inputs[1:]] for node in (source, quantize)
    )
    low, high = (int(number_of(value)) for value in clip.inputs[1:])
    ends = [(end - zero) * step / new_step + new_zero for end in (0, HIGHEST)]
    if ends[0] >= low - SURE:
        return HIGHEST - high
    return -low if ends[1] <= high + SURE else None


def _sums_fit(pair: ir.Node) -> bool:
    """Tell whether convolutions alone read a value, whose sums no byte saturates, without VNNI."""
    made = pair.outputs[0]
    readers = made.consumers()
    return bool(readers) and not made.is_graph_output() and all(map(_fits, readers))


def _fits(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "Conv" else None
    dequantize = weight.producer() if weight is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    codes, groups = dequantize.inputs[0], node.attributes.get("group")
    if codes is None or codes.const_value is None:
        return False
    weights = torch.from_numpy(number_of(codes).astype(np.int32))
    given = 1 if groups is None else groups.as_int()
    return not bool(can_saturate(weights, HIGHEST, groups=given).any())

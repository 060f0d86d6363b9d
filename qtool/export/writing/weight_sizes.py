"""What a weight takes in a file at a width, by writing it: codes, and the operators around them.

A stand-in of a few codes is written as the writer of files does, so that names, shapes, operators
and constants count as they stand there; codes beyond those few take what their form says. Lengths
in protobuf grow by a byte now and then: a sum over a network is near the file's, and not equal.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from qtool.export.writing.insert import insert_constant
from qtool.export.writing.packing import Layout, layouts, pack
from qtool.export.writing.unpacking import SharedConstants, Unpacker
from qtool.export.writing.weights import part_of, to_proto
from qtool.numerics.grid import IntegerGrid


class WeightBytes(NamedTuple):
    """What a weight takes in a file.

    Attributes:
        codes: the codes alone.
        all: with names, shapes and operators.
        shared: constants that all weights of this form share.
        form: that they share; "" for plain codes.
    """

    codes: int
    all: int
    shared: int
    form: str


def weight_bytes(name: str, shape: Sequence[int], grid: IntegerGrid) -> WeightBytes:
    """Return what a layer's weight takes whose codes reach over a whole grid.

    Args:
        name: of the layer.
        shape: of the weight.
        grid: of its codes.
    """
    every = np.arange(grid.code_min, grid.code_max + 1, grid.code_step).astype(np.int8)
    found, count = layouts(every, grid.bits), math.prod(shape)
    tensor = part_of(name, "codes")
    if not found:
        stands_in = np.zeros([1] * len(shape), np.int8)
        own = _size_with([tensor], stands_in, None) - _size_with([], stands_in, None)
        return WeightBytes(count, own + count - 1, 0, "")
    layout = found[0]
    group = layout.form.group
    few = group if count % group == 0 else group + 1
    stands_in = np.full([*[1] * (len(shape) - 1), few], grid.code_min, np.int8)
    none, one, two = (
        _size_with(names, stands_in, layout)
        for names in ([], [tensor], [tensor, f"{tensor[:-1]}\x7f"])
    )
    codes = layout.form.bytes_of(count)
    own = two - one + codes - layout.form.bytes_of(few)
    return WeightBytes(codes, own, one - none - (two - one), layout.form.name)


def _size_with(names: Sequence[str], codes: np.ndarray, layout: Layout | None) -> int:
    """Return the size of a graph with codes under some names."""
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Identity", [given], name="last")
    graph = ir.Graph([given], node.outputs, nodes=[node], opset_imports={"": 21}, name="g")
    unpacker = Unpacker(graph, SharedConstants(graph))
    for name in names:
        if layout is None:
            insert_constant(graph, name, codes)
        else:
            unpacker.unpack(pack(codes, layout), name, node)
    return to_proto(ir.Model(graph, ir_version=10)).ByteSize()

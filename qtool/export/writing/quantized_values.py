"""What a graph itself says of its quantized tensors: annotations, as they can be told from it.

A value is quantized where DequantizeLinear reads it with one scale. Its codes take the bits that
a Clip leaves, on integers or before QuantizeLinear: 0 .. 2^n - 1 are UINTn; an operator that passes
values on, or joins values of one grid, keeps them.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qtool.export.targets.target import Array
from qtool.export.writing.annotation import Annotation

KEEPS = (
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice"),
    *("Gather", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Concat", "Resize", "Pad"),
)
"""Operators whose results are values that they are given."""
BYTES = (TensorProto.INT8, TensorProto.UINT8)
Range = tuple[int, int]
BYTE: Range = (0, 255)


class QuantizedValues:
    """The quantized values of a graph, and the codes that they can have."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {item.name: item for item in graph.initializer}
        self._depends = depending(graph)
        self._ranges: dict[str, Range] = {}

    def annotations(self) -> list[Annotation]:
        """Return one annotation for each quantized value, in the order of the graph.

        Where a value is dequantized twice, the reader with one scale for all of it counts. Codes
        that an operator passes on, such as Pad, are those of the value that it reads.
        """
        found: dict[str, Annotation] = {}
        for node in self._graph.node:
            if not self._dequantizes_values(node):
                continue
            codes, scale, zero_point = self._quantized(node.input[0]), *node.input[1:]
            if scale in self._constants and len(self._constants[scale].dims) == 0:
                found.setdefault(codes, Annotation(codes, scale, zero_point, self.datatype(codes)))
        return list(found.values())

    def _quantized(self, codes: str) -> str:
        """Return the codes that these are, before operators passed them on."""
        maker = self._makers.get(codes)
        while maker is not None and maker.op_type in KEEPS and maker.op_type != "Concat":
            codes = maker.input[0]
            maker = self._makers.get(codes)
        return codes

    def weights(self) -> list[Annotation]:
        """Return one annotation for each plain weight: bytes of two dimensions or more."""
        found: dict[str, Annotation] = {}
        for node in self._graph.node:
            if node.op_type == "DequantizeLinear" and len(node.input) == 3:
                codes = self._constants.get(node.input[0])
                if codes is not None and codes.data_type in BYTES and len(codes.dims) > 1:
                    kind = "INT8" if codes.data_type == TensorProto.INT8 else "UINT8"
                    tensor, scale, zero_point = node.input
                    found[codes.name] = Annotation(tensor, scale, zero_point, kind)
        return list(found.values())

    def _dequantizes_values(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node reads codes that depend on an input."""
        complete = node.op_type == "DequantizeLinear" and len(node.input) == 3
        return complete and node.input[0] in self._depends

    def datatype(self, codes: str) -> str:
        """Return the narrowest name that QONNX and FINN have for codes."""
        low, high = self.range_of(codes)
        if low > 0 or high <= 0:
            return "UINT8"
        return "BINARY" if high == 1 else f"UINT{high.bit_length()}"

    def range_of(self, codes: str) -> Range:
        """Return the smallest and the largest integer that codes can be."""
        if codes not in self._ranges:
            self._ranges[codes] = BYTE  # while it is looked for
            self._ranges[codes] = self._found_range(codes)
        return self._ranges[codes]

    def _found_range(self, codes: str) -> Range:
        node = self._makers.get(codes)
        if node is None:
            return BYTE
        if node.op_type == "Clip":
            low, high = self.range_of(node.input[0])
            ends = self._limits(node)
            return (max(low, int(ends[0])), min(high, int(ends[1]))) if ends else BYTE
        if node.op_type == "QuantizeLinear" and len(node.input) == 3:
            return self._kept(node)
        if node.op_type in KEEPS:  # of codes themselves
            return self.range_of(node.input[0])
        return BYTE

    def _kept(self, quantize: onnx.NodeProto) -> Range:
        """Return the range of codes that are quantized as they were before, or from a Clip."""
        maker = self._makers.get(quantize.input[0])
        ends = self._limits(maker) if maker is not None and maker.op_type == "Clip" else []
        scale, zero = (self.number(name) for name in quantize.input[1:])
        if ends and scale and zero is not None:
            low, high = (round(end / scale + zero) for end in ends)
            return (max(low, BYTE[0]), min(high, BYTE[1]))
        if maker is None or maker.op_type not in KEEPS:
            return BYTE
        given = maker.input if maker.op_type == "Concat" else maker.input[:1]
        pairs = [self._makers.get(name) for name in given]
        if not all(p is not None and self._same_grid(p, quantize) for p in pairs):
            return BYTE
        ranges = [self.range_of(pair.input[0]) for pair in pairs if pair is not None]
        return (min(low for low, _ in ranges), max(high for _, high in ranges))

    def _limits(self, clip: onnx.NodeProto) -> list[float]:
        """Return both limits of a Clip; [] where one is not a constant."""
        limits = [self.number(name) for name in clip.input[1:3] if name]
        known = [limit for limit in limits if limit is not None]
        return known if len(known) == 2 else []

    def _same_grid(self, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
        if dequantize.op_type != "DequantizeLinear" or len(dequantize.input) != 3:
            return False
        return all(
            a == b or np.array_equal(self.array(a), self.array(b))
            for a, b in zip(dequantize.input[1:], quantize.input[1:], strict=True)
        )

    def array(self, name: str) -> Array:
        """Return a constant, or what Expand repeats; an empty array where there is none."""
        item, maker = self._constants.get(name), self._makers.get(name)
        if maker is not None and maker.op_type == "Expand":
            return self.array(maker.input[0])
        return np.zeros(0) if item is None else numpy_helper.to_array(item)

    def number(self, name: str) -> float | None:
        """Return a constant of one number; None for anything else."""
        array = self.array(name)
        return float(array.reshape(-1)[0]) if array.size == 1 else None


def depending(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that an input of the graph has a part in."""
    constants = {item.name for item in graph.initializer}
    found = {value.name for value in graph.input} - constants
    for node in graph.node:
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return found

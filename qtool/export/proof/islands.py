"""What of a runtime's graph runs in integers, and what in float between integers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import TensorProto, numpy_helper

from qtool.export.targets.target import Runtime
from qtool.export.writing.node_names import owner_of

CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger")
LINEARS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "MatMulNBits")
POOLINGS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
JOINS = ("Add", "Mul", "Concat")
QUANTIZABLE = (*CONVOLUTIONS, *LINEARS, *POOLINGS, *JOINS)
"""Operators that could run in integers; a runtime's integer kernels are, too."""
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape")
"""Operators that compute nothing and move nothing."""
_NAMED = {"tensor(bool)": TensorProto.BOOL, "tensor(int64)": TensorProto.INT64}
PASSES_ON = (
    *(*VIEWS, "Transpose", "Slice", "Split", "Concat", "Pad", "Gather", "Expand", "Tile"),
    *("DepthToSpace", "SpaceToDepth", "MaxPool", "GlobalMaxPool", "Clip"),
)
"""Operators whose results have the type of what they read."""
Y_SCALE = 7  # the input of QGemm that is absent where it gives float numbers
_BYTES = (TensorProto.UINT8, TensorProto.INT8)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class RuntimeGraph:
    """The graph that a runtime made of a file, with what is known of the types in it.

    Attributes:
        graph: from `Runtime.optimized`.
        runtime: that made it.
    """

    graph: onnx.GraphProto
    runtime: Runtime
    _types: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the type of every tensor, and what does not depend on an input."""
        graph, types = self.graph, self._types
        for value in (*graph.value_info, *graph.input, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        types |= {item.name: item.data_type for item in graph.initializer}
        for node in graph.node:
            made = self._made_by(node)
            for name in node.output:
                if types.get(name, 0) == 0 and made:
                    types[name] = made

    def _made_by(self, node: onnx.NodeProto) -> int:
        """Return the type of a tensor that the runtime wrote down none for; 0 if unknown.

        Where it joined a kernel with the quantizer behind it, the codes are a tensor of its own.
        """
        known = [self._types.get(name, 0) for name in node.input]
        if node.op_type == "Shape":
            return TensorProto.INT64
        if node.op_type == "DequantizeLinear":
            return TensorProto.FLOAT
        if node.op_type == "QuantizeLinear":
            return next(iter(known[2:]), 0) or TensorProto.UINT8
        if node.op_type == "MatMulIntegerToFloat" or (
            node.op_type == "QGemm" and not any(node.input[Y_SCALE:])
        ):
            return TensorProto.FLOAT
        if node.op_type in (*self._kernels, *PASSES_ON):
            kinds = [kind for kind in known if kind in (*_BYTES, *_FLOATS)]
            otherwise = known[:1] if node.op_type in PASSES_ON else ()  # sizes, too, are passed on
            return next(
                (kind for kind in kinds if kind in _BYTES), next(iter(kinds or otherwise), 0)
            )
        if node.op_type == "Cast":
            return next(item.i for item in node.attribute if item.name == "to")
        return _first_made(node, known)

    @property
    def _kernels(self) -> tuple[str, ...]:
        return (*self.runtime.integer_kernels, *self.runtime.integer_joins)

    @cached_property
    def _constant(self) -> set[str]:
        """Names of tensors that no input of the file has a part in."""
        given = {value.name for value in self.graph.input}
        found = {item.name for item in self.graph.initializer} - given
        for node in self.graph.node:
            if all(name in found or not name for name in node.input):
                found.update(node.output)
        return found

    def reads(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors that a node reads and that depend on the file's inputs."""
        return [name for name in node.input if name and name not in self._constant]

    def in_integers(self, node: onnx.NodeProto) -> bool:
        """Tell whether an operator computes in integers."""
        if node.op_type in self._kernels:
            return True
        read = [self._types.get(name, 0) for name in self.reads(node)]
        return bool(read) and all(kind in _BYTES for kind in read)

    def quantizable(self) -> list[onnx.NodeProto]:
        """Return the operators that compute in integers or could.

        Those are convolutions, matrix products with a weight, additions, products, concatenations
        and poolings of numbers that depend on an input; not sums of sizes, nor what only writes
        bytes with another scale.
        """
        return [
            node
            for node in self.graph.node
            if self._is_quantizable(node) and not self._only_rescales(node)
        ]

    def _only_rescales(self, node: onnx.NodeProto) -> bool:
        """Tell whether bytes get another scale: by adding a zero, or by joining one tensor."""
        if len(self.reads(node)) != 1:
            return False
        if node.op_type == "QLinearAdd":
            operands = [
                self._numbers[n] for n in (node.input[0], node.input[3]) if n in self._numbers
            ]
            return all(not numpy_helper.to_array(item).any() for item in operands)
        return node.op_type in ("Concat", "QLinearConcat")

    @cached_property
    def _numbers(self) -> dict[str, onnx.TensorProto]:
        """Constants by name."""
        return {item.name: item for item in self.graph.initializer}

    def _is_quantizable(self, node: onnx.NodeProto) -> bool:
        if node.op_type in self._kernels:
            return True
        read = self.reads(node)
        if node.op_type not in QUANTIZABLE or not read:
            return False
        if any(self._types.get(name, 0) not in (*_BYTES, *_FLOATS) for name in read):
            return False
        return node.op_type not in LINEARS or not self.multiplies_values(node)

    def multiplies_values(self, node: onnx.NodeProto) -> bool:
        """Tell whether a matrix product has no weight: both factors depend on an input."""
        factors = [name for name in node.input[:2] if name]
        return len(self.reads(node)) >= len(factors)

    def float_between_integers(self) -> list[onnx.NodeProto]:
        """Return the operators that run in float and lie between quantized ones, in order.

        Their values come from integers, and go into integers again, directly or through other
        float operators.
        """
        fed: dict[str, bool] = {}
        for node in self.graph.node:
            here = node.op_type == "DequantizeLinear" or self.in_integers(node)
            here = bool(self.reads(node)) and (here or any(fed.get(n, False) for n in node.input))
            fed.update(dict.fromkeys(node.output, here))
        wanted: set[str] = set()
        for node in reversed(self.graph.node):
            into = node.op_type == "QuantizeLinear" or self.in_integers(node)
            if into or any(name in wanted for name in node.output):
                wanted.update(self.reads(node))
        return [
            node
            for node in self.graph.node
            if self._runs_in_float(node)
            and any(name in wanted for name in node.output)
            and any(fed.get(name, False) for name in self.reads(node))
        ]

    def _runs_in_float(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", *VIEWS):
            return False
        floats = [name for name in node.output if self._types.get(name, 0) in (*_FLOATS, 0)]
        return bool(floats) and bool(self.reads(node)) and not self.in_integers(node)


def owners(
    nodes: Iterable[onnx.NodeProto], file: Mapping[str, str]
) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield operators of a runtime's graph and where in the network each comes from.

    Args:
        nodes: of the runtime's graph.
        file: tensor of the file -> the name of the node that makes it.
    """
    for node in nodes:
        named = owner_of(node.name) or next(
            (owner_of(file[name]) for name in node.output if name in file), ""
        )
        yield node, named or node.name or node.op_type


def _first_made(node: onnx.NodeProto, known: list[int]) -> int:
    """Return the type of an operator's first output by ONNX's own definition of it; 0 if unknown.

    Runtimes have operators of their own, such as FusedConv: those make what they read first.
    """
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return next((kind for kind in known if kind in _FLOATS), 0)
    schema = onnx.defs.get_schema(node.op_type)
    made = schema.outputs[0].type_str
    for index, kind in enumerate(known):
        given = schema.inputs[min(index, len(schema.inputs) - 1)]  # the last may stand for many
        if given.type_str == made and kind:
            return kind
    return _NAMED.get(made, 0)

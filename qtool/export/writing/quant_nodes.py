"""QuantizeLinear and DequantizeLinear as QONNX's Quant and BipolarQuant, for FINN and hls4ml.

Quant takes real values to real values of a grid, clip(x / s + z) rounded, minus z, times s, so that
all tensors stay float32: weights too, which are codes times scales and become themselves. A grid
whose ends are no powers of two has a Clip before its Quant. BipolarQuant sends zero to +1, qtool to
-1: so the smallest number is subtracted first. Linear layers are MatMul and Add.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qtool.export.targets.target import Array
from qtool.export.writing.annotation import Annotation
from qtool.export.writing.insert import insert_constant, insert_node
from qtool.export.writing.pairs import (
    ceiled,
    number_of,
    number_or_none,
    quantizer_of,
    replace_value,
    without,
)
from qtool.export.writing.quant_width import ONE_BIT, Width, width_of
from qtool.export.writing.weights import GATE, LAYER, REAL, Stored, part_of
from qtool.integer.layers import LayerSpec

DOMAIN, VERSION = "qonnx.custom_op.general", 1
FLOAT32_BYTES = 4
RECTIFIERS = ("relu", "clip")  # functions that unsigned grids do by their ends, and FINN looks for
SMALLEST = np.finfo(np.float32).tiny  # that is not denormal, which processors may take for 0


class QuantWriter:
    """Rewrites a traced graph, whose marks must still be there."""

    def __init__(self, graph: ir.Graph) -> None:
        """Take a graph with plain codes under DequantizeLinear, and values between both."""
        self._graph = graph
        self._numbers: dict[tuple[str, float], ir.Value] = {}
        self._told: dict[str, Annotation] = {}

    def rewrite(self, layers: Iterable[LayerSpec]) -> Mapping[str, Annotation]:
        """Let a graph say all that it quantizes by Quant and BipolarQuant.

        Returns:
            Name of a tensor of codes -> what is said of the real values in its place.
        """
        grids = {part_of(spec.name, "codes"): spec for spec in layers}
        for node in list(self._graph):
            if node.op_type == "DequantizeLinear" and number_or_none(node.inputs[0]) is not None:
                self._constant(node, grids.get(str(node.inputs[0].name if node.inputs[0] else "")))
        for node in list(self._graph):
            if node.op_type == "DequantizeLinear":
                self._values(node)
        for node in list(self._graph):
            if node.op_type == "Gemm":
                self._multiply(node)
        self._graph.opset_imports[DOMAIN] = VERSION
        return self._told

    def _constant(self, node: ir.Node, spec: LayerSpec | None) -> None:
        """Let a weight be its real numbers under Quant, and a bias its real numbers."""
        codes, scale, zero = node.inputs[0], number_of(node.inputs[1]), node.inputs[2:]
        assert codes is not None
        made, whole = node.outputs[0], number_of(codes)
        columns = _columns(node, scale, whole.ndim)
        offset = _columns(node, number_of(zero[0]), whole.ndim) if zero else np.zeros((), np.int8)
        steps = whole.astype(np.float32) - offset.astype(np.float32)
        real = np.multiply(steps, columns, dtype=np.float32)
        if whole.dtype == np.int32 or not whole.ndim:
            _take_over(node, insert_constant(self._graph, f"{made.name}.real", real))
            return
        name = str(codes.name)
        given = insert_constant(self._graph, f"{name}.real", real)
        step = insert_constant(self._graph, f"{name}.scale", columns)
        quantized = f"{name}{REAL}"
        if spec is not None and spec.weight_bits == 1 and bool((np.abs(steps) == 1).all()):
            new = self._bipolar(given, step, quantized, node)
            width = ONE_BIT
        else:
            width = width_of(steps, spec)
            new = self._quant(given, step, width, quantized, node)
        none = str(self._number("zero", 0).name)
        self._told[name] = Annotation(quantized, str(step.name), none, width.datatype)
        _take_over(node, new)

    def _values(self, node: ir.Node) -> None:
        """Let values be rounded by one Quant, from what they are made of."""
        quantize, limits = quantizer_of(node)
        codes = node.inputs[0]
        assert codes is not None
        scale, zero = float(number_of(node.inputs[1])), int(number_of(node.inputs[2]))
        own_scale, own_zero = (number_of(value) for value in quantize.inputs[1:3])
        given = quantize.inputs[0]
        assert given is not None
        owner = node.metadata_props.get(LAYER, "")
        name, step = str(codes.name), node.inputs[1]
        assert step is not None
        if (up := ceiled(given)) is not None and float(own_scale) == 1:
            given, *ends = up
            low, high = (int(end) for end in ends)
            new, width = self._rounded(given, step, (low, high), "CEIL", name, node)
        elif float(own_scale) != scale and not owner.endswith(GATE):
            new, width = (
                self._sign(without(given, float(own_scale) / 2), step, name, node),
                ONE_BIT,
            )
        else:
            own = int(own_zero)
            ends = (limits[0] - own, limits[1] - own)
            if _is_rectified(owner) and not ends[0]:
                given = _insert("Relu", [given], f"{name}.rectified", node)
            own_step = quantize.inputs[1]
            assert own_step is not None
            new, width = self._rounded(given, own_step, ends, "ROUND", name, node)
            if float(own_scale) != scale or own != zero:  # a gate: the same codes, read anew
                factor = self._number("factor", scale / float(own_scale))
                shift = self._number("shift", (own - zero) * scale)
                new = _insert("Mul", [new, factor], f"{name}.read", node)
                new = _insert("Add", [new, shift], f"{name}.moved", node)
        zeros = str(self._number("zero", width.zero_point).name)
        self._told[name] = Annotation(f"{name}{REAL}", str(step.name), zeros, width.datatype)
        _take_over(node, new)

    def _rounded(  # noqa: PLR0917  what a Quant takes, in its order
        self,
        given: ir.Value,
        step: ir.Value,
        ends: tuple[int, int],
        rounding: str,
        name: str,
        before: ir.Node,
    ) -> tuple[ir.Value, Width]:
        """Return values on a grid from one integer to another, and the width that holds it."""
        width = Width.holding(*ends)
        if width.ends != ends:
            scale = float(number_of(step))
            cuts = [self._number("end", end * scale) for end in ends]
            given = _insert("Clip", [given, *cuts], f"{name}.cut", before)
        return self._quant(given, step, width, f"{name}{REAL}", before, rounding), width

    def _sign(self, given: ir.Value, step: ir.Value, name: str, before: ir.Node) -> ir.Value:
        """Return +s for what is above zero, else -s."""
        least = self._number("smallest", float(SMALLEST))
        moved = _insert("Sub", [given, least], f"{name}.above", before)
        return self._bipolar(moved, step, f"{name}{REAL}", before)

    def _bipolar(self, given: ir.Value, step: ir.Value, name: str, before: ir.Node) -> ir.Value:
        node = ir.node("BipolarQuant", [given, step], domain=DOMAIN, name=_name_of(before, "Sign"))
        return _put(node, name, before)

    def _quant(  # noqa: PLR0917  what a Quant takes, in its order
        self,
        given: ir.Value,
        step: ir.Value,
        width: Width,
        name: str,
        before: ir.Node,
        rounding: str = "ROUND",
    ) -> ir.Value:
        inputs = [
            *(given, step),
            *(self._number("zero", width.zero_point), self._number("bits", width.bits)),
        ]
        said = {
            "signed": int(width.signed),
            "narrow": int(width.narrow),
            "rounding_mode": rounding,
        }
        node = ir.node("Quant", inputs, said, domain=DOMAIN, name=_name_of(before, "Quant"))
        return _put(node, name, before)

    def _multiply(self, node: ir.Node) -> None:
        """Write Gemm as MatMul and Add."""
        x, weight, *bias = node.inputs
        made, factors = node.outputs[0], [node.attributes.get(key) for key in ("alpha", "beta")]
        moved = node.attributes.get("transA")
        plain = all(factor is None or factor.as_float() == 1 for factor in factors)
        if x is None or weight is None or not plain or (moved is not None and moved.as_int()):
            return
        turned = node.attributes.get("transB")
        if turned is not None and turned.as_int():
            weight = _insert("Transpose", [weight], f"{made.name}.weight", node)
        new = _insert("MatMul", [x, weight], f"{made.name}.product", node)
        if bias and bias[0] is not None:
            new = _insert("Add", [new, bias[0]], f"{made.name}.sum", node)
        new.shape, new.type = made.shape, made.type
        _take_over(node, new)

    def _number(self, name: str, number: float) -> ir.Value:
        """Return a constant, float32 [], of which the graph has one for each number and use."""
        if (name, number) not in self._numbers:
            taken = sum(known == name for known, _ in self._numbers)
            called = f"quant.{name}{number:g}" if name in ("zero", "bits") else f"{name}.{taken}"
            value = insert_constant(self._graph, called, np.array(number, np.float32))
            self._numbers[name, number] = value
        return self._numbers[name, number]


def to_quant(
    graph: ir.Graph,
    layers: Sequence[LayerSpec],
    annotations: Sequence[Annotation],
    stored: Mapping[str, Stored],
) -> tuple[list[Annotation], dict[str, Stored]]:
    """Let a traced graph say all that it quantizes by Quant and BipolarQuant.

    Args:
        graph: whose marks must still be there.
        layers: of the integer model.
        annotations: of codes.
        stored: layer -> where its codes stand.

    Returns:
        The annotations of the real values that stand in the place of codes, and where each layer's
        weight stands, in four bytes a number.
    """
    told = QuantWriter(graph).rewrite(layers)
    real = {
        name: Stored(told[held.codes].tensor, FLOAT32_BYTES * held.packed_bytes)
        for name, held in stored.items()
        if held.codes in told
    }
    return [told.get(note.tensor, note) for note in annotations], {**stored, **real}


def _columns(node: ir.Node, scale: Array, ndim: int) -> Array:
    """Return scales shaped to broadcast over a weight; one where all are the same."""
    flat = scale.reshape(-1)
    if bool((flat == flat[0]).all()):
        return flat[0].reshape(())
    axis = node.attributes.get("axis")
    shape = [1] * ndim
    shape[1 if axis is None else axis.as_int()] = flat.size
    return flat.reshape(shape)


def _is_rectified(owner: str) -> bool:
    """Tell whether a site's function is a ReLU or a clip."""
    return ":" in owner and owner.rpartition(":")[2].rstrip("0123456789") in RECTIFIERS


def _name_of(node: ir.Node, operator: str) -> str:
    """Return a node's name with another operator behind the slash."""
    owner, _, old = str(node.name).partition("/")
    number = old.partition(".")[2]
    return f"{owner}/{operator}{f'.{number}' if number else ''}"


def _insert(operator: str, inputs: list[ir.Value], name: str, before: ir.Node) -> ir.Value:
    """Put a standard operator before a node, named after the same layer; return its output."""
    made = insert_node(operator, inputs, name, before)
    maker = made.producer()
    assert maker is not None
    maker.name = _name_of(before, operator)
    return made


def _put(node: ir.Node, name: str, before: ir.Node) -> ir.Value:
    made = node.outputs[0]
    made.name = name
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return made


def _take_over(node: ir.Node, new: ir.Value) -> None:
    """Let a value stand in the place of a node's output."""
    old = node.outputs[0]
    new.shape, new.type = new.shape or old.shape, ir.TensorType(ir.DataType.FLOAT)
    replace_value(old, new)
    assert node.graph is not None
    node.graph.remove(node, safe=True)

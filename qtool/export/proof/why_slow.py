"""Why a file is slower than it could be: what runs in float between quantized operators, and why.

What is known of a place goes first: why a layer was left float, why a runtime cannot fuse it, why
an addition stays float. Else the kind of the operator tells. What no recipe could change
(`by_design`) is listed as such, and a strict export does not refuse it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from qtool.errors import ExportError
from qtool.export.proof.by_design import AROUND, NO_FORM, NO_KERNEL, float_by_design
from qtool.export.proof.islands import CONVOLUTIONS, LINEARS, POOLINGS, RuntimeGraph, owners
from qtool.export.targets.target import Runtime
from qtool.export.writing.saved import read_back
from qtool.integer.converted import Converted
from qtool.integer.layers import LayerSpec
from qtool.limits import CHOSEN, LIMITS
from qtool.reports.exports import FloatOperator

EVERY_VALUE = "place: every_value"
NOTHING = "nothing in the recipe"
BY_DESIGN = "it stays float by design"
CHOSEN_ENDS = CHOSEN.says.removeprefix("{where}")
GATES = ("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Silu")
RECTIFIERS = ("Relu", "Clip", "LeakyRelu")


@dataclass(frozen=True)
class Known:
    """What was decided for a network, and bears on what of it runs in float.

    Attributes:
        layers: the integer layers by name.
        left_float: layer -> why it stays float.
        not_folded: norm -> why it stays beside the layers.
        float_sites: call site that stays float, or whose result does -> why.
        values: whether quantizers stand at every value.
    """

    layers: Mapping[str, LayerSpec] = field(default_factory=dict)
    left_float: Mapping[str, str] = field(default_factory=dict)
    not_folded: Mapping[str, str] = field(default_factory=dict)
    float_sites: Mapping[str, str] = field(default_factory=dict)
    values: bool = False

    @classmethod
    def of(cls, state: Converted) -> "Known":
        """Return what an integer model keeps."""
        layers = {spec.name: spec for spec in state.layers}
        places = state.float_sites, bool(state.sites)
        return cls(layers, state.left_float, state.not_folded, *places)


@dataclass(frozen=True)
class Kernels:
    """How a runtime computes a file.

    Attributes:
        integer: number of operators that run in integers, of
        quantizable: those that do or could: convolutions, linear layers, additions, products,
            concatenations and poolings.
        why_slow: what runs in float between quantized operators.
        layers: names of the layers in integer kernels.
    """

    integer: int
    quantizable: int
    why_slow: list[FloatOperator]
    layers: frozenset[str] = frozenset()


def kernels_of(path: Path, graph: onnx.GraphProto, runtime: Runtime, known: Known) -> Kernels:
    """Return how a runtime computes a file.

    Args:
        path: of the file.
        graph: what the runtime made of it.
        runtime: that made it.
        known: what was decided for the network.
    """
    made = RuntimeGraph(graph, runtime)
    file = {
        name: node.name
        for node in read_back(path, tensors=False).graph.node
        for name in node.output
    }
    quantizable = made.quantizable()
    placed = list(owners(made.float_between_integers(), file))
    whys = [_why(node.op_type, name, known) for node, name in placed]
    nodes, names = [node for node, _ in placed], [name for _, name in placed]
    designs = float_by_design(nodes, names, [reason for reason, _ in whys], made)
    found = [
        FloatOperator(
            operator=node.op_type,
            name=name,
            reason=f"{BY_DESIGN}, {design}" if design else reason,
            change=NOTHING if design else change,
            by_design=bool(design),
        )
        for (node, name), (reason, change), design in zip(placed, whys, designs, strict=True)
    ]
    of_layers = [node for node in graph.node if node.op_type in runtime.integer_kernels]
    layers = frozenset(name for _, name in owners(of_layers, file)) & known.layers.keys()
    return Kernels(sum(map(made.in_integers, quantizable)), len(quantizable), found, layers)


def _why(operator: str, name: str, known: Known) -> tuple[str, str]:
    """Return why an operator runs in float, and what would change it."""
    if name in known.left_float:
        return known.left_float[name], _do(known.left_float[name])
    if name in known.layers:
        return _why_layer(operator, known.layers[name], known)
    if name in known.float_sites:
        return known.float_sites[name], _do(known.float_sites[name])
    if operator == "BatchNormalization" and name in known.not_folded:
        return f"it is not folded: {known.not_folded[name]}", _do(known.not_folded[name])
    return _why_kind(operator, known)


def _why_layer(operator: str, spec: LayerSpec, known: Known) -> tuple[str, str]:
    if operator not in (*CONVOLUTIONS, *LINEARS):
        if spec.input_rounding == "ceil":
            return (
                "it is a part of rounding: ceil, which is written exactly",
                "quantization.activations.rounding: half_to_even, or --ceil shifted",
            )
        return "it is a part of what quantizes the layer's input", "more bits than 1 for that input"
    if spec.weight_bits is None:
        return "its weight is float", "quantization.weights, or the layer's override"
    if spec.input_bits is None:
        return "its input is float", "quantization.activations, or the layer's override"
    if operator == "ConvTranspose":
        return NO_KERNEL, NOTHING
    if spec.unfused:
        return spec.unfused, NOTHING
    return _no_quantizer("what it makes", known)


def _why_kind(operator: str, known: Known) -> tuple[str, str]:
    if operator == "BatchNormalization":
        return "it is not folded into a layer", EVERY_VALUE if not known.values else NOTHING
    if operator in ("Add", "Sub", "Mul", "Concat", *POOLINGS, *GATES):
        return _no_quantizer("a value that it reads or makes", known)
    if operator in RECTIFIERS:
        return _no_quantizer("what it reads, or what it makes,", known)
    if operator in (*CONVOLUTIONS, *LINEARS):
        return "it is no layer that qtool quantizes", NOTHING
    if operator in ("Transpose", "Slice", "Split", "Pad", "Gather", "Expand"):
        return _no_quantizer("the value that it passes on", known)
    return f"{NO_FORM} {operator}", NOTHING


def _no_quantizer(where: str, known: Known) -> tuple[str, str]:
    """Return that no quantizer stands somewhere, and what would put one there."""
    reason = f"{where} has no quantizer"
    if known.values:
        return f"{reason}, {AROUND}", "what keeps its neighbours float"
    return reason, EVERY_VALUE


def _do(reason: str) -> str:
    """Return what a user can do about a reason in the words of `qtool.limits`."""
    limit = next((limit for limit in LIMITS.values() if limit.fits(reason)), None)
    if limit is CHOSEN:
        return f"{reason.removesuffix(CHOSEN_ENDS)}, which chooses so"
    return (limit.advice(reason) if limit is not None else "") or NOTHING


def refuse_float_operators(file: str, found: Iterable[FloatOperator]) -> None:
    """Check that nothing runs in float between quantized operators but what is so by design.

    Raises:
        ExportError: If something does; names the first of them.
    """
    listed = [one for one in found if not one.by_design]
    if listed:
        first = "; ".join(f"{o.name} ({o.operator}): {o.reason}" for o in listed[:3])
        more = f"; and {len(listed) - 3} more" if len(listed) > 3 else ""
        number = f"{len(listed)} operator{'s' if len(listed) > 1 else ''}"
        raise ExportError(
            f"{file}: --strict: {number} would run in float between quantized ones: "
            f"{first}{more}; the file was not written"
        )

"""In which form each layer's weight stands, by what the runtime makes of the file."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from qtool.export.targets.target import Runtime, Target
from qtool.export.writing.annotation import tensor_names
from qtool.export.writing.weights import WeightWriter, part_of, to_proto


@dataclass(frozen=True)
class Forms:
    """Names of layers by the form their weight should have; the others keep DequantizeLinear.

    Attributes:
        integer: those that the runtime runs in integer kernels.
        floating: those whose weight should be unpacked to float.
    """

    integer: set[str]
    floating: set[str]


def choose_forms(
    model: onnx.ModelProto,
    layers: Mapping[str, tuple[str, int]],
    target: Target,
    runtime: Runtime,
) -> Forms:
    """Choose each layer's form by what the runtime makes of it.

    A runtime that finds a float weight between integer tensors may quantize it again, to codes
    and a scale of its own; such a layer keeps its codes under DequantizeLinear.

    Args:
        model: with DequantizeLinear on every weight, its nodes still marked.
        layers: name -> the tensor of its codes, and the dimensions of its weight.
        target: that the file is written for.
        runtime: that is asked.
    """
    kernels = [n for n in runtime.optimized(model).node if n.op_type in runtime.integer_kernels]
    read = {name for node in kernels for name in node.input}
    integer = {name for name, (codes, _) in layers.items() if codes in read}
    others = [name for name in layers if name not in integer]
    if not others:
        return Forms(integer, set())
    trial = ir.from_proto(model)
    writer = WeightWriter(trial, target)
    for name in others:
        writer.unpack_to_float(name, layers[name][1])
    written = to_proto(trial)
    known, graph = tensor_names(written.graph), runtime.optimized(written)
    constants = {item.name for item in graph.initializer}
    again = [
        node.op_type == "DequantizeLinear" and node.input[0] in constants - known
        for node in graph.node
    ]
    floating = set(others)
    if any(again):  # only those that every operator still reads as they are
        floating = {
            name
            for name in floating
            if _readers(graph, part_of(name, "weight"))
            == _readers(written.graph, part_of(name, "weight"))
        }
    return Forms(integer, floating)


def _readers(graph: onnx.GraphProto, name: str) -> int:
    """Return how many operators read a tensor."""
    return sum(name in node.input for node in graph.node)

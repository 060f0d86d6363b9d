"""Targets: what each runtime takes.

To add one, write a function here that returns a Target and decorate it with `@TARGETS.add`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from qtool.export.runtime import INTEGER_KERNELS, optimized_graph
from qtool.registry import Registry

TARGETS: "Registry[Callable[[], Target]]" = Registry("target")


@dataclass(frozen=True)
class Target:
    """How a file for one runtime is written.

    Attributes:
        opset: version of the standard operators.
        packed: store weights at their true width, as tables that the runtime unpacks at load.
        integer_weights: asks the runtime which tensors of weights its integer kernels read. The
            other layers get their weights unpacked to float by Mul, which it folds at load; None
            leaves DequantizeLinear on all of them.
    """

    opset: int
    packed: bool
    integer_weights: Callable[[onnx.ModelProto], set[str]] | None


@TARGETS.add
def onnxruntime() -> Target:
    """ONNX Runtime 1.19 or later on a CPU: int8 kernels from packed weights."""
    return Target(opset=18, packed=True, integer_weights=_weights_of_kernels)


def _weights_of_kernels(model: onnx.ModelProto) -> set[str]:
    """Return the names of all tensors that ONNX Runtime's integer kernels read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, str(path))
        nodes = optimized_graph(path).node
    return {name for node in nodes if node.op_type in INTEGER_KERNELS for name in node.input}

"""Targets: what each runtime takes.

To add one, write a function here that returns a Target and decorate it with `@TARGETS.add`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from qtool.export.targets.onnxruntime import optimized_model
from qtool.registry import Registry

TARGETS: "Registry[Callable[[], Target]]" = Registry("target")


@dataclass(frozen=True)
class Target:
    """How a file for one runtime is written.

    Attributes:
        opset: version of the standard operators.
        packed: store weights at their true width, as tables that the runtime unpacks at load.
        optimized: returns the graph that the runtime makes of a file, for choosing each weight's
            form by what the runtime does with it; None leaves DequantizeLinear on all weights.
    """

    opset: int
    packed: bool
    optimized: Callable[[onnx.ModelProto], onnx.GraphProto] | None


@TARGETS.add
def onnxruntime() -> Target:
    """ONNX Runtime 1.19 or later on a CPU: int8 kernels from packed weights."""
    return Target(opset=18, packed=True, optimized=optimized_model)

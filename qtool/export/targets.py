"""Targets: what each runtime takes.

To add one, write a function here that returns a Target and decorate it with `@TARGETS.add`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qtool.registry import Registry

TARGETS: "Registry[Callable[[], Target]]" = Registry("target")


@dataclass(frozen=True)
class Target:
    """How a file for one runtime is written.

    Attributes:
        opset: version of the standard operators.
        packed: store weights at their true width, as tables that the runtime unpacks at load.
        float_weights_by_mul: weights of layers that cannot run in integers become float by Mul,
            which the runtime folds at load, instead of DequantizeLinear, which it runs each time.
    """

    opset: int
    packed: bool
    float_weights_by_mul: bool


@TARGETS.add
def onnxruntime() -> Target:
    """ONNX Runtime 1.19 or later on a CPU: int8 kernels from packed weights."""
    return Target(opset=18, packed=True, float_weights_by_mul=True)

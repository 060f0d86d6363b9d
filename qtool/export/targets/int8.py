"""Plain int8 weights under DequantizeLinear: nothing for other tools to unpack."""

from qtool.export.targets.onnxruntime import OnnxRuntime, onnxruntime_from
from qtool.export.targets.target import TARGETS, Target


@TARGETS.add
def int8() -> Target:
    """Any reader of int8, and tools that rewrite files; 8 bits a weight."""
    return Target(opset=21, library=onnxruntime_from("1.19"), run_in=OnnxRuntime, weights="int8")

"""Weights as ONNX's own integers of 2 bits, where those hold their codes, else as with int4."""

from qtool.export.targets.onnxruntime import OnnxRuntime, onnxruntime_from
from qtool.export.targets.target import TARGETS, Target


@TARGETS.add
def int2() -> Target:
    """ONNX Runtime 1.24 or later, onnx 1.20: native INT2 and INT4 and a Cast to int8; no tables."""
    return Target(
        opset=25,
        library=onnxruntime_from("1.24"),
        run_in=OnnxRuntime,
        weights="int2",
        ir_version=13,
    )

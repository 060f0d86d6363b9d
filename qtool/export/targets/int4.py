"""Weights as ONNX's own integers of 4 bits, where those hold their codes, else as int8."""

from qtool.export.targets.onnxruntime import OnnxRuntime, onnxruntime_from
from qtool.export.targets.target import TARGETS, Target


@TARGETS.add
def int4() -> Target:
    """ONNX Runtime 1.24 or later: native INT4 and a Cast to int8; no tables."""
    return Target(
        opset=21,
        library=onnxruntime_from("1.24"),
        run_in=OnnxRuntime,
        weights="int4",
        ir_version=10,
    )

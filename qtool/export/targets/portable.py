"""Readers that know no QuantizeLinear: weights looked up in float, values rounded by arithmetic."""

from qtool.export.targets.onnxruntime import OnnxRuntime, onnxruntime_from
from qtool.export.targets.target import TARGETS, Target


@TARGETS.add
def portable() -> Target:
    """Any reader of opset 18: Div, Round, Clip and Mul, in float; checked in ONNX Runtime."""
    return Target(
        opset=18,
        library=onnxruntime_from("1.19"),
        run_in=OnnxRuntime,
        weights="float",
        activations="arithmetic",
        resizes=False,  # few readers resize bytes with antialias
    )

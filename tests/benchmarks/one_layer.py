"""One integer layer as a file of ONNX Runtime's own operators, and what exact sums give."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from qtool.numerics.saturation import MIDDLE


@dataclass(frozen=True)
class Kind:
    """A layer: of what shape its weight is, and what it computes on."""

    name: str
    inside: int  # channels of the input, all groups
    kernel: int = 1  # 0: a linear layer
    groups: int = 1
    stride: int = 1
    size: int = 5  # pixels in a row, or rows
    outside: int = 0  # channels of the output, where all pairs do not say it
    linear: str = "QGemm"  # what a linear layer becomes: QGemm, or QLinearMatMul

    def codes(self, rows: int) -> tuple[int, ...]:
        """Return the shape of a weight with so many channels."""
        kernel = [self.kernel] * 2 if self.kernel else []
        return (rows, self.inside // self.groups, *kernel)

    @property
    def inputs(self) -> list[int]:
        """Return the shape of the input."""
        if not self.kernel:
            return [self.size, self.inside]
        return [1, self.inside, self.size, self.size]


KINDS = [
    Kind("1x1, channels in fours", 12),
    Kind("1x1, odd channels", 11),
    Kind("1x1, stride 2", 12, stride=2),
    Kind("1x1, one pixel", 12, size=1),
    Kind("3x3, channels in fours", 4, 3),
    Kind("3x3, two channels", 2, 3),
    Kind("3x3, three channels, stride 2", 3, 3, stride=2),
    Kind("3x3, in groups of four", 8, 3, groups=2),
    Kind("3x3, in groups of three", 6, 3, groups=2),
    Kind("3x3, two channels out of each of many", 18, 3, groups=18, outside=36),
    Kind("3x3, depthwise, few channels", 36, 3, groups=36, outside=36),
    Kind("3x3, depthwise, channels in sixteens", 48, 3, groups=48, outside=48),
    Kind("linear, one row", 13, 0, size=1),
    Kind("linear, seven rows", 13, 0, size=7),
    Kind("linear, seven rows, inputs in fours", 16, 0, size=7),
    Kind("QLinearMatMul, one row", 13, 0, size=1, linear="QLinearMatMul"),
    Kind("QLinearMatMul, seven rows", 13, 0, size=7, linear="QLinearMatMul"),
]


def file_of(kind: Kind, codes: NDArray[np.int64], factor: float, *, unsigned: bool) -> bytes:
    """Return a file of one layer: uint8 [..] in, clip(round(factor * sums) + 128) out."""
    zero = MIDDLE if unsigned else 0
    stored = (codes + zero).astype(np.uint8 if unsigned else np.int8)
    linear = not kind.kernel
    constants = {
        "x_scale": np.float32(1.0),
        "x_zero": np.uint8(0),
        "w": stored.T.copy() if linear else stored,
        "w_scale": np.full(len(codes), factor, np.float32),
        "w_zero": np.full(len(codes), zero, stored.dtype),
        "y_scale": np.float32(1.0),
        "y_zero": np.uint8(MIDDLE),
    }
    given = ["x", *constants]
    side = kind.kernel // 2
    if kind.kernel:
        attributes = {"group": kind.groups, "pads": [side] * 4, "strides": [kind.stride] * 2}
        node = helper.make_node("QLinearConv", given, ["y"], **attributes)
    elif kind.linear == "QGemm":
        given.insert(6, "")  # no bias
        node = helper.make_node("QGemm", given, ["y"], domain="com.microsoft")
    else:
        node = helper.make_node("QLinearMatMul", given, ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in "xy")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, kind.inputs)
    held = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph([node], "layer", [x], [y], held)
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    return model.SerializeToString()


def expected(kind: Kind, codes: NDArray[np.int64], x: NDArray[np.uint8], factor: float):
    """Return what exact sums give, uint8."""
    values, weight = torch.from_numpy(x).double(), torch.from_numpy(codes).double()
    if kind.kernel:
        sums = F.conv2d(values, weight, None, kind.stride, kind.kernel // 2, 1, kind.groups).numpy()
    else:
        sums = F.linear(values, weight).numpy()
    steps = np.rint(sums.astype(np.float32) * np.float32(factor))
    return np.clip(steps + MIDDLE, 0, 255).astype(np.uint8)

"""Adaptive average pooling of three dimensions, for which torch.onnx has no function."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18

_OP: Any = opset18  # it is said to take tensors, and takes a graph's values


def adaptive_avg_pool3d(self: ir.Value, output_size: Sequence[int]) -> ir.Value:
    """Return the mean over windows, of which those side by side may share a row.

    One AveragePool where all windows are alike; otherwise the mean along one dimension after the
    other, which is the mean over the box, for the windows of a dimension are the same throughout.

    Args:
        self: [..., depth, height, width], all three known.
        output_size: how many windows each has.

    Returns:
        [..., *output_size].
    """
    assert self.shape is not None
    axes = range(len(self.shape) - len(output_size), len(self.shape))
    sizes = [size for size in self.shape if isinstance(size, int)][-len(axes) :]
    if all(size % windows == 0 for size, windows in zip(sizes, output_size, strict=True)):
        shape = [size // windows for size, windows in zip(sizes, output_size, strict=True)]
        return _OP.AveragePool(self, kernel_shape=shape, strides=shape)
    pooled = self
    for axis, size, windows in zip(axes, sizes, output_size, strict=True):
        pooled = _OP.Concat(*_means(pooled, axis, size, windows), axis=axis)
    return pooled


def _means(x: ir.Value, axis: int, size: int, windows: int) -> list[ir.Value]:
    """Return the mean over each window along an axis, which stays, with size 1."""

    def along(end: int) -> ir.Value:
        return _OP.Constant(value_ints=[end])

    return [
        _OP.ReduceMean(
            _OP.Slice(
                x, along(n * size // windows), along(-(-(n + 1) * size // windows)), along(axis)
            ),
            along(axis),
            keepdims=1,
        )
        for n in range(windows)
    ]


FUNCTIONS: dict[Callable[..., object], Callable[..., object]] = {
    torch.ops.aten._adaptive_avg_pool3d.default: adaptive_avg_pool3d
}
"""Operator -> what writes it, in the place of torch.onnx's own."""

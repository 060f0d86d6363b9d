"""Adaptive average pooling of three dimensions, for which torch.onnx has no function."""

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch
from onnxscript import opset18


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
    first = len(self.shape) - len(output_size)
    sizes = [size for size in self.shape[first:] if isinstance(size, int)]
    pairs = list(zip(sizes, output_size, strict=True))
    if all(size % windows == 0 for size, windows in pairs):
        shape = [size // windows for size, windows in pairs]
        return _made("AveragePool", self, kernel_shape=shape, strides=shape)
    pooled = self
    for axis, (size, windows) in enumerate(pairs, first):
        pooled = _made("Concat", *_means(pooled, axis, size, windows), axis=axis)
    return pooled


def _means(x: ir.Value, axis: int, size: int, windows: int) -> list[ir.Value]:
    """Return the mean over each window along an axis, which stays, with size 1."""

    def number(value: int) -> ir.Value:
        return _made("Constant", value_ints=[value])

    found = []
    for n in range(windows):
        start, end = n * size // windows, -(-(n + 1) * size // windows)
        window = _made("Slice", x, number(start), number(end), number(axis))
        found.append(_made("ReduceMean", window, number(axis), keepdims=1))
    return found


def _made(operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
    """Write an operator into the graph; what onnxscript says of its types is of tensors."""
    return getattr(opset18, operator)(*inputs, **attributes)


FUNCTIONS: dict[Callable[..., object], Callable[..., object]] = {
    torch.ops.aten._adaptive_avg_pool3d.default: adaptive_avg_pool3d
}
"""Operator -> what writes it, in the place of torch.onnx's own."""

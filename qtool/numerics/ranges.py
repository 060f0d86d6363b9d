"""Range rules: from a tensor's values to the scale of its grid.

Each takes `rows` [R, K], one row for each scale, and a grid, and returns the scales [R], all
positive. To add one, write a function here and decorate it: its name is its name in recipes, its
keyword-only arguments are its parameters. Two names say more than their starting scale:
`learned` makes the scale a parameter, `ema_min_max` follows the values during training.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.registry import Registry

RANGES: Registry[Callable[..., Tensor]] = Registry("range")
SMALLEST_SCALE = 1e-8  # a row of zeros has no scale of its own; a learned scale stays above it


def _positive(scale: Tensor) -> Tensor:
    return scale.clamp_min(SMALLEST_SCALE)


@RANGES.add
def absmax(rows: Tensor, grid: IntegerGrid) -> Tensor:
    """Put the outermost level at the largest absolute value: nothing saturates.

    s = max|x| / high    (max|x| / (high - 1/2) on mid_rise)
    """
    return _positive(grid.bound_to_scale(rows.abs().amax(1)))


@RANGES.add
def ema_min_max(
    rows: Tensor, grid: IntegerGrid, *, decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
) -> Tensor:
    """Follow the smallest and largest value of each batch by an exponential moving average.

    m <- decay * m + (1 - decay) * batch's;  s = max(|min|, |max|) / high, and on the asymmetric
    grid s = (max - min) / (2^b - 1). This function turns extremes into a scale; the quantizer of
    activations averages them.

    Reference: Jacob et al., 2018, arXiv:1712.05877.
    """
    del decay
    low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    return min_max_to_scale(low, high, grid)


@RANGES.add
def mse(
    rows: Tensor, grid: IntegerGrid, *, candidates: Annotated[int, Field(ge=2, le=1000)] = 80
) -> Tensor:
    """Search the scale with the smallest mean squared rounding error, on the grid itself.

    s = argmin_k mean((x - x_hat(s_k))^2),  s_k = k / candidates * scale of absmax
    """
    largest = absmax(rows, grid)
    best, smallest_error = largest, torch.full_like(largest, torch.inf)
    for k in range(1, candidates + 1):
        scale = _positive(largest * (k / candidates))
        column = scale.unsqueeze(1)
        error = (
            (dequantize(quantize(rows, column, 0, grid), column, 0, grid) - rows).square().mean(1)
        )
        better = error < smallest_error
        best, smallest_error = (
            torch.where(better, scale, best),
            torch.where(better, error, smallest_error),
        )
    return best


@RANGES.add
def learned(rows: Tensor, grid: IntegerGrid) -> Tensor:
    """Train the scale with the weights, from this start (LSQ).

        s = 2 mean|x| / sqrt(high)

    The gradient is scaled by 1 / sqrt(N high), with N the values that share the scale.

    Reference: Esser et al., 2020, arXiv:1902.08153.
    """
    return _positive(2 * rows.abs().mean(1) / grid.qmax**0.5)


def min_max_to_scale(low: Tensor, high: Tensor, grid: IntegerGrid) -> Tensor:
    """Return the scales [R] of values between `low` <= 0 and `high` >= 0, both [R]."""
    if grid.kind == "asymmetric":
        return _positive((high - low) / (grid.qmax - grid.qmin))
    return _positive(grid.bound_to_scale(torch.maximum(-low, high)))


def min_to_zero_point(low: Tensor, scale: Tensor, grid: IntegerGrid) -> Tensor:
    """Return the zero points [R] of the asymmetric grid: z = round(-low / s) in qmin..qmax."""
    return torch.round(-low / scale).clamp(grid.qmin, grid.qmax)

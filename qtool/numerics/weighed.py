"""Means and quantiles of rows whose values each stand for several, as those of a sample do.

`rows` are [R, K], `weights` [K]: how many values each column stands for; None where for one.
"""

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, dequantize, quantize


def mean_of(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of each row, [R].

    >>> mean_of(torch.tensor([[1.0, 5.0]]), torch.tensor([3.0, 1.0]))
    tensor([2.])
    """
    return rows.mean(1) if weights is None else rows @ (weights / weights.sum())


def rounding_error(
    rows: Tensor,
    scale: Tensor,
    grid: IntegerGrid,
    weights: Tensor | None = None,
    zero_point: Tensor | None = None,
) -> Tensor:
    """Return the mean squared rounding error of each row, [R], at scales and zero points [R]."""
    column = scale.unsqueeze(1)
    zero = 0 if zero_point is None else zero_point.unsqueeze(1)
    rounded = dequantize(quantize(rows, column, zero, grid), column, zero, grid)
    return mean_of((rounded - rows).square(), weights)


def quantile_of(rows: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return the value [R] that a share of the values lies below, where each stands for several.

    A value that stands for n lies in the middle of their n places, counted from the largest.
    """
    falling = rows.sort(1, descending=True)
    counts = weights[falling.indices]
    behind = counts.cumsum(1)
    middle = behind - (counts + 1) / 2
    place = (1 - share) * (behind[:, -1:] - 1)
    after = torch.searchsorted(middle, place).clamp(1, rows.shape[1] - 1)
    near, far = middle.gather(1, after - 1), middle.gather(1, after)
    higher, lower = falling.values.gather(1, after - 1), falling.values.gather(1, after)
    # two that stand for none share a place
    part = ((place - near) / (far - near).clamp_min(0.5)).clamp(0, 1)
    return torch.lerp(higher, lower, part).squeeze(1)

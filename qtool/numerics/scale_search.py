"""Searches for the scale of the smallest rounding error, as the ranges mse and ppq do.

On a CPU rows that stand still are left out; elsewhere that would have to wait for the device, and
all rows go on, to the same scales.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, quantize
from qtool.numerics.weighed import rounding_error


def best_of(
    rows: Tensor, scales: Iterable[Tensor], grid: IntegerGrid, weights: Tensor | None = None
) -> Tensor:
    """Return the scale of each row's smallest error, [R], of several [R]: the first of equals."""
    rest = iter(scales)
    best = next(rest)
    smallest = rounding_error(rows, best, grid, weights)
    for scale in rest:
        error = rounding_error(rows, scale, grid, weights)
        better = error < smallest
        best = torch.where(better, scale, best)
        smallest = torch.where(better, error, smallest)
    return best


def refine_scale(
    rows: Tensor, scale: Tensor, grid: IntegerGrid, weights: Tensor | None = None
) -> Tensor:
    """Return the scales [R] after one iteration of `ppq` from `scale` [R]; the error never grows.

    A scale so large that every q is zero stays as it is.
    """
    levels = quantize(rows, scale.unsqueeze(1), 0, grid) - grid.offset
    weighed = levels if weights is None else levels * weights
    fitted = (rows * weighed).sum(1) / (levels * weighed).sum(1)
    return torch.where(fitted > 0, fitted, scale)


def alternated(
    rows: Tensor,
    scale: Tensor,
    grid: IntegerGrid,
    iterations: int,
    weights: Tensor | None = None,
    *,
    leaves_out: bool | None = None,
) -> Tensor:
    """Return the scales [R] that the alternation of `ppq` reaches from `scale` [R].

    `leaves_out` says whether to read which rows still move; None does so on a CPU only.
    """
    if not (rows.device.type == "cpu" if leaves_out is None else leaves_out):
        for _ in range(iterations):
            scale = refine_scale(rows, scale, grid, weights)
        return scale
    scale, moving = scale.clone(), torch.arange(len(rows), device=rows.device)
    for _ in range(iterations):
        last = scale[moving]
        fitted = refine_scale(rows, last, grid, weights)
        moves = fitted != last
        if not moves.all():
            moving, rows, fitted = moving[moves], rows[moves], fitted[moves]
        if not len(moving):
            break
        scale[moving] = fitted
    return scale


def start_of_zeros(rule: Callable[..., Tensor], grid: IntegerGrid, fan_in: int | None) -> float:
    """Return the scale that a row of zeros starts from.

    It is what the rule gives for weights as torch draws them, U(-b, b), b = 1 / sqrt(fan_in); from
    the smallest scale the first step saturates the row. Activations have no fan-in: b = 1.
    """
    bound = 1.0 if fan_in is None else fan_in**-0.5
    places = (torch.arange(1024) + 0.5) / 1024
    spread = places * 2 - 1 if grid.signed else places
    return float(rule(bound * spread.unsqueeze(0), grid))

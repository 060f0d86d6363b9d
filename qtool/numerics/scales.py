"""What a scale may be, and what follows from the extremes of a tensor's values."""

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from qtool.numerics.grid import IntegerGrid

SMALLEST_SCALE = 1e-8  # a row of zeros has no scale of its own; a learned scale stays above it
LARGEST_SCALE = 1e36  # times 255, the largest integer of a grid, that is within float32


def _computes(scale: float) -> float:
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        why = f"{SMALLEST_SCALE:g} to {LARGEST_SCALE:g} is what float32 computes with"
        raise ValueError(f"{scale:g} is no scale; {why}")
    return scale


GivenScale = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_computes)]


def above_floor(scale: Tensor) -> Tensor:
    """Return scales, those below SMALLEST_SCALE set to it; one that is not a number stays so.

    >>> above_floor(torch.tensor([0.0, 0.5, float("nan")]))
    tensor([1.0000e-08, 5.0000e-01,        nan])
    """
    return scale.clamp_min(SMALLEST_SCALE)


def min_max_to_scale(low: Tensor, high: Tensor, grid: IntegerGrid) -> Tensor:
    """Return the scales [R] of values between `low` <= 0 and `high` >= 0, both [R].

    >>> low, high = torch.tensor([-0.5]), torch.tensor([1.0])
    >>> min_max_to_scale(low, high, IntegerGrid(2, "asymmetric"))  # 1.5 in three steps
    tensor([0.5000])
    >>> min_max_to_scale(low, high, IntegerGrid(3, "narrow"))  # 1.0 at the outermost level, 3
    tensor([0.3333])
    """
    if grid.kind == "asymmetric":
        return above_floor((high - low) / (grid.qmax - grid.qmin))
    return above_floor(grid.bound_to_scale(torch.maximum(-low, high)))


def min_to_zero_point(low: Tensor, scale: Tensor, grid: IntegerGrid) -> Tensor:
    """Return the zero points [R] of the asymmetric grid: z = round(-low / s) in qmin..qmax.

    >>> min_to_zero_point(torch.tensor([-0.5]), torch.tensor([0.5]), IntegerGrid(2, "asymmetric"))
    tensor([1.])
    """
    return torch.round(-low / scale).clamp(grid.qmin, grid.qmax)

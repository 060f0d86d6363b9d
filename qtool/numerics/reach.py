"""How far a learned scale of weights may stray from the weights themselves.

LSQ scales the gradient of s so that a step moves s, in proportion, as much as it moves the weights
(Esser et al., 2020, arXiv:1902.08153, section 2.2). Where training from scratch turns the weights
of a row over within a few steps, as momentum 0.9 at a rate of 0.05 does in a first or last layer,
that carries s past zero. Every weight then saturates, and instead of a rounding error of at most
1/2 each adds up to `high` to the gradient of s: the next steps throw s to hundreds of times
max|w| / high. There every code is 0, the gradient of s, x / s, is nearly nothing, and s stays.

So s is projected, as the steps of a constrained minimization are, onto scales at which a row can
still be what it is. Healthy ones lie inside: LSQ's start at up to 4 bits, but for rows that hold
little beside their largest values, and the scales of the least error of normal and Laplacian rows.
"""

from functools import lru_cache

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid

# times max|w| / high, and a little to spare for what the last step does to the weight
WIDEST = 3.9  # from 4 on the largest code is less than a quarter of the grid's
NARROWEST = 0.26  # at 8 bits: below 1/4 the upper three quarters of the weights saturate


@lru_cache(maxsize=256)
def reach(grid: IntegerGrid) -> tuple[float, float]:
    """Return the smallest and the largest scale of a row whose max|w| is 1.

        0.26 sqrt(h / 127) <= s h / a <= min(3.9, 1.9 h)
        a = max|w|, h = high (high - 1/2 on mid_rise)

    Below 8 bits more of a row may saturate: the best scale for few levels is narrower. At most
    1.9 a, for from 2 a on the whole row is rounded to zero, which mid_rise has not.

    >>> [round(factor, 3) for factor in reach(IntegerGrid(2, "narrow"))]
    [0.023, 1.9]
    """
    high = grid.qmax - grid.offset
    widest = WIDEST if grid.offset else min(WIDEST, 1.9 * high)
    return NARROWEST * (high / 127) ** 0.5 / high, widest / high


def within(scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the scales [R], each kept between its bounds [R]; a row of zeros, high 0, keeps it."""
    return torch.where(high > 0, torch.minimum(torch.maximum(scale, low), high), scale)

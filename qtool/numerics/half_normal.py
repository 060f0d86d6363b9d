"""Scales fixed in advance for values that a batch norm without scale and shift made normal.

A quantized ReLU keeps the positive half of N(0, 1), so that its best scale depends on the grid
and on nothing else.

Reference: Yin et al., 2019, arXiv:1903.05662.
"""

import math
from functools import lru_cache
from typing import Literal

from qtool.numerics.grid import IntegerGrid

Fit = Literal["published", "round", "ceil"]
PUBLISHED = {1: 1.2221, 2: 0.6511, 4: 0.1946}  # bits to scale, in the authors' code
WIDEST = 5.0  # standard deviations: no best grid reaches further


def normal_scale(grid: IntegerGrid, fit: Fit) -> float:
    """Return the scale for values of N(0, 1), of which an unsigned grid sees max(x, 0).

    Args:
        grid: the integers allowed.
        fit: "published" takes the authors' constants on unsigned grids of 1, 2 and 4 bits, and
            "round" elsewhere; "round" and "ceil" minimize the error of rounding that way.
    """
    if fit == "published" and grid.kind == "unsigned" and grid.bits in PUBLISHED:
        return PUBLISHED[grid.bits]
    return _best_scale(grid, ceil=fit == "ceil")


@lru_cache
def _best_scale(grid: IntegerGrid, *, ceil: bool) -> float:
    """Return argmin_s of `normal_error`."""
    from scipy.optimize import minimize_scalar  # takes half a second, and few recipes need it

    found = minimize_scalar(
        lambda scale: normal_error(scale, grid, ceil=ceil),
        bounds=(1e-3 / grid.qmax, WIDEST / (grid.qmax - grid.offset)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x)


def normal_error(scale: float, grid: IntegerGrid, *, ceil: bool) -> float:
    """Return E (x - Q(x))^2 for x of N(0, 1), given x > 0 on a grid without negative integers.

    Q(x) = s (clamp(round(x / s + o)) - o), or ceil in the place of round. On the cell (a, b) of
    the level v the integral of (x - v)^2 phi(x) is

        F(b) - F(a),   F(x) = (1 + v^2) Phi(x) - (x - 2 v) phi(x)
    """
    lowest = -math.inf if grid.signed else 0.0
    ahead = 0.0 if ceil else 0.5  # how far above its level a cell ends, in steps
    error, start = 0.0, lowest
    for q in range(grid.qmin, grid.qmax + 1):
        level = (q - grid.offset) * scale
        end = math.inf if q == grid.qmax else max(lowest, level + ahead * scale)
        error += _integral(end, level) - _integral(start, level)
        start = end
    return error if grid.signed else 2 * error


def _integral(x: float, level: float) -> float:
    """Return F(x) of `normal_error`, with Phi counted from 0."""
    share = math.erf(x / math.sqrt(2)) / 2
    if math.isinf(x):
        return (1 + level**2) * share
    density = math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return (1 + level**2) * share - (x - 2 * level) * density

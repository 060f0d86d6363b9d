"""The straight-through run that a custom gradient estimator is equivalent to: alpha and M(u).

Training under plain SGD with an estimator of derivative Q'(u) stays close to training with the
straight-through estimator from M(w0) at the learning rate times alpha, with

    alpha = 1 / integral over one bin of ds / Q'(s)
    M(u)  = m + alpha * integral from m to u of ds / Q'(s),   m the nearest threshold

if the derivative is cyclical (the same in every bin), positive and bounded. All is in steps: bins
of width 1, thresholds at half-integers, levels at integers. M keeps every threshold, so that the
quantized value of M(u) is that of u. Under Adam, alpha is 1 and M the identity.

The sign family has one threshold and no bins, and its scale is free: alpha = 1,
M(u) = 1/2 + 1/2 * integral from 0 to 2u - 1 of dv / h(v), judged by positivity and boundedness.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qtool.numerics.closed_forms import CLOSED_FORMS, SIGN_FORMS, Warp
from qtool.numerics.estimators import ESTIMATORS, Estimator
from qtool.numerics.sign_family import SIGN_FAMILY

UNBOUNDED = (-8.0, 8.0)  # the grid whose interior is judged where no bounds are given
BINS_JUDGED = 64
HAIR = 1e-9
NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(4))


@dataclass(frozen=True)
class StraightThroughMap:
    """What turns a run with an estimator into a straight-through run.

    Attributes:
        alpha: factor of the learning rate; nan where there is no M.
        lower: smallest derivative over the interior bins (the sign family: between the levels);
            with bounds also over a stretch as wide as the grid beyond each bound.
        upper: largest derivative over the same.
        reason: why the estimator lies outside the theorem's class, or "".
    """

    alpha: float
    lower: float
    upper: float
    reason: str
    _moved: Callable[[Tensor], Tensor] | None = field(repr=False, compare=False)
    _thresholds: tuple[float, float] = field(repr=False, compare=False)  # the outermost two

    @property
    def in_class(self) -> bool:
        """Tell whether the theorem covers the estimator."""
        return not self.reason

    @torch.no_grad()
    def map(self, u: Tensor) -> Tensor:
        """Return M(u), of u's shape and dtype, on u's side of every threshold.

        It is computed in float64, on the CPU. With bounds M is u outside them (but not that of
        magnitude_aware); for the sign family M is u where the derivative is 0 or M not finite.

        Raises:
            ValueError: If the estimator has no M.
        """
        if self._moved is None:
            raise ValueError(f"there is no map: {self.reason}")
        here = u.cpu()
        wide = here.double()
        moved = self._moved(wide).to(u.dtype)
        threshold = (torch.floor(wide) + 0.5).clamp(*self._thresholds)
        # near a threshold M may round onto it, or past it, and so change the quantized value
        same_side = torch.sign(moved.double() - threshold) == torch.sign(wide - threshold)
        beside = torch.nextafter(threshold.to(u.dtype), here)
        kept = torch.where(same_side, moved, beside)
        return torch.where(moved.isfinite(), kept, here).to(u.device)


def straight_through_map(
    name: str, low: float | None = None, high: float | None = None, **params: object
) -> StraightThroughMap:
    """Return alpha and M of the estimator `name` with `params`, in closed form where there is one.

    Args:
        name: an estimator; one of SIGN_FAMILY is taken as that, any other as having bins.
        low: the lowest level, an integer; None judges the interior bins alone.
        high: the highest level.
        **params: the estimator's parameters; those not given have their defaults.

    Raises:
        RecipeError: If the estimator or a parameter is unknown or wrong.
        ValueError: If the bounds are no grid, or not 0 and 1 for the sign family.

    Examples:
        >>> m = straight_through_map("sinusoidal", amplitude=0.6)
        >>> m.in_class, round(m.alpha, 6)  # alpha = sqrt(1 - a^2)
        (True, 0.8)
        >>> m.map(torch.tensor([0.0, 0.25, 0.5, 1.0]))  # levels and thresholds stay
        tensor([0.0000, 0.3524, 0.5000, 1.0000])
        >>> straight_through_map("clipped_relu", low=0, high=3).reason
        'its derivative is 0 outside the grid, so saturated weights never come back'
    """
    return _map(name, low, high, params, closed=True)


def numeric_map(
    name: str, low: float | None = None, high: float | None = None, **params: object
) -> StraightThroughMap:
    """Return the same as `straight_through_map`, by numeric integration whatever the estimator."""
    return _map(name, low, high, params, closed=False)


def _map(
    name: str, low: float | None, high: float | None, given: Mapping[str, object], *, closed: bool
) -> StraightThroughMap:
    estimator = ESTIMATORS.build(name, **given)
    params = ESTIMATORS.values(name, given)
    bounds = None
    if low is not None and high is not None:
        bounds = float(low), float(high)
        if not (low < high and bounds[0].is_integer() and bounds[1].is_integer()):
            raise ValueError(f"low < high must be integers, got {low} and {high}")
    elif low is not None or high is not None:
        raise ValueError("give both bounds or none")
    make = _sign_map if name in SIGN_FAMILY else _bin_map
    return make(name, estimator, bounds, params, closed=closed)


def _bin_map(
    name: str,
    estimator: Estimator,
    bounds: tuple[float, float] | None,
    params: Mapping[str, object],
    *,
    closed: bool,
) -> StraightThroughMap:
    low, high = bounds or UNBOUNDED
    slope = _slope(estimator, low, high)
    interior = _bins(low, high)
    beyond = []
    if bounds:
        beyond = [_stretch(2 * low - high, low - HAIR), _stretch(high + HAIR, 2 * high - low)]
    lower, upper = _extremes(slope, [interior, *beyond])
    outermost = (low + 0.5, high - 0.5) if bounds else (-math.inf, math.inf)
    reason = _fault(estimator, interior, low, high)
    if not reason and len(interior) == 1:  # whether it is cyclical takes two bins
        reason = _fault(estimator, _bins(*UNBOUNDED), *UNBOUNDED)
    if reason:
        return StraightThroughMap(math.nan, lower, upper, reason, None, outermost)
    if closed and name in CLOSED_FORMS:
        alpha, warp = CLOSED_FORMS[name](**params)
    else:
        alpha, warp = _numeric_warp(slope, math.floor((low + high) / 2) + 0.5)

    def moved(u: Tensor) -> Tensor:
        threshold = torch.floor(u) + 0.5
        inside = threshold + warp(u - threshold)
        if bounds is None:
            return inside
        outside = _faded(u, low, high) if name == "magnitude_aware" else u
        return torch.where((low <= u) & (u <= high), inside, outside)

    reason = _fault_beyond(slope, beyond)
    return StraightThroughMap(alpha, lower, upper, reason, moved, outermost)


def _sign_map(
    name: str,
    estimator: Estimator,
    bounds: tuple[float, float] | None,
    params: Mapping[str, object],
    *,
    closed: bool,
) -> StraightThroughMap:
    if bounds not in (None, (0.0, 1.0)):
        raise ValueError(f"{name} is for grids of the two levels 0 and 1")
    slope = _slope(estimator, 0.0, 1.0)
    near, wide = _stretch(-1.0, 2.0), _stretch(-500.0, 500.0)
    lower, upper = _extremes(slope, [near if bounds else _stretch(0.0, 1.0)])
    reason = NEGATIVE if (slope(wide) < 0).any() else _fault(estimator, near, 0.0, 1.0)
    if reason not in ("", ZERO):
        return StraightThroughMap(math.nan, lower, upper, reason, None, (0.5, 0.5))
    if reason:
        reason = "its derivative is 0 away from the threshold: weights out there never come back"
    integral = SIGN_FORMS[name](**params) if closed and name in SIGN_FORMS else None
    if integral is None:
        integral = _Integral(lambda v: 1 / slope((v + 1) / 2), torch.arange(-8000, 8001) / 1e3)

    def moved(u: Tensor) -> Tensor:
        return torch.where(slope(u) > 0, (1 + integral(2 * u - 1)) / 2, u)

    return StraightThroughMap(1.0, lower, upper, reason, moved, (0.5, 0.5))


NEGATIVE = "its derivative is negative in places"
ZERO = "its derivative is 0 in places inside the grid, where M diverges"


def _fault(estimator: Estimator, u: Tensor, low: float, high: float) -> str:
    """Say why there is no M over the places `u`, float64 [bins, places of a bin], or ""."""
    slope, opposite, double = (_slope(estimator, low, high, grad)(u) for grad in (1.0, -1.0, 2.0))
    if not slope.isfinite().all():
        return "its derivative is not bounded"
    if not torch.allclose(slope, opposite, rtol=1e-9, atol=0):
        return "it depends on the sign of the gradient"
    if not torch.allclose(slope, double, rtol=1e-9, atol=0):
        return "it is not linear in the gradient"
    if (slope < 0).any():
        return NEGATIVE
    if (slope == 0).any():
        return ZERO
    if ((slope - slope[0]).abs() > 1e-6 * slope[0].max()).any():
        return "its derivative changes from bin to bin: it is not cyclical"
    return ""


def _fault_beyond(slope: Callable[[Tensor], Tensor], beyond: list[Tensor]) -> str:
    """Say what is wrong with the derivative below and above the grid, or ""."""
    slopes = [slope(u) for u in beyond]
    if any((s < 0).any() for s in slopes):
        return NEGATIVE
    match [bool((s == 0).any()) for s in slopes]:
        case [True, True]:
            where = "outside"
        case [True, False]:
            where = "below"
        case [False, True]:
            where = "above"
        case _:
            return ""
    return f"its derivative is 0 {where} the grid, so saturated weights never come back"


def _slope(
    estimator: Estimator, low: float, high: float, grad: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """Return u -> g_u / g, the estimator's derivative as `grad` sees it."""
    return lambda u: estimator(torch.full_like(u, grad), u, low, high) / grad


def _extremes(slope: Callable[[Tensor], Tensor], places: list[Tensor]) -> tuple[float, float]:
    slopes = torch.cat([slope(u).flatten() for u in places])
    return float(slopes.min()), float(slopes.max())


def _bins(low: float, high: float) -> Tensor:
    """Return places from level to level, float64 [bins, places]: all levels and thresholds but two.

    The bounds themselves are left out by a hair: what happens there is the bounds' rule.
    """
    first = torch.arange(low, high, max(1, (high - low) // BINS_JUDGED), dtype=torch.float64)
    return (first[:, None] + torch.arange(400) / 400).clamp(min=low + HAIR)


def _stretch(start: float, stop: float) -> Tensor:
    """Return places from start to stop, float64 [1, places]."""
    return torch.linspace(start, stop, 3001, dtype=torch.float64)[None]


def _faded(u: Tensor, low: float, high: float) -> Tensor:
    """Return magnitude_aware's M outside the grid: (d^2 + c^2) / (2c) from the middle."""
    middle, c = (low + high) / 2, (high - low) / 2
    return middle + torch.sign(u - middle) * ((u - middle) ** 2 + c * c) / (2 * c)


def _numeric_warp(slope: Callable[[Tensor], Tensor], threshold: float) -> tuple[float, Warp]:
    """Return alpha and warp of the bin around `threshold`, in the middle between two levels."""
    # panels grow narrow where derivatives have their kinks: at thresholds and levels
    half = torch.sin(torch.linspace(0, math.pi / 2, 4097, dtype=torch.float64)) ** 2 / 2
    integral = _Integral(lambda t: 1 / slope(threshold + t), torch.cat([-half.flip(0)[:-1], half]))
    alpha = 1 / float(integral.values[-1] - integral.values[0])
    return alpha, lambda t: alpha * integral(t)


class _Integral:
    """x -> integral from 0 to x, by four Gauss nodes in each panel, exact up to kinks inside one.

    Attributes:
        edges: the panels' ends, float64 [panels + 1], symmetric with 0 in the middle.
        values: the integral at the edges, float64 [panels + 1].
    """

    def __init__(self, integrand: Callable[[Tensor], Tensor], edges: Tensor) -> None:
        self.integrand, self.edges = integrand, edges.double()
        pieces = self._over(self.edges[:-1], self.edges.diff())
        left, right = pieces.tensor_split(2)
        # outwards from 0, so that an infinite integral far out leaves the others finite
        left, right = -left.flip(0).cumsum(0).flip(0), right.cumsum(0)
        self.values = torch.cat([left, torch.zeros(1, dtype=torch.float64), right])

    def _over(self, start: Tensor, width: Tensor) -> Tensor:
        """Return the integral over [start, start + width], elementwise."""
        places = start[..., None] + width[..., None] * (1 + NODES) / 2
        return (self.integrand(places) * WEIGHTS).sum(-1) * width / 2

    def __call__(self, x: Tensor) -> Tensor:
        panel = torch.bucketize(x, self.edges, right=True).sub(1).clamp(0, len(self.edges) - 2)
        start = self.edges[panel]
        return self.values[panel] + self._over(start, x - start)

"""By which power of the learning rate an error falls: a straight line through logarithms."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qtool.comparison.statistics.several import ALPHA
from qtool.reports.comparisons import Slope

Errors = Mapping[int, Mapping[float, float | None]]  # seed -> learning rate -> error


@dataclass(frozen=True)
class Line:
    """Least squares through log errors over log learning rates, at a level for each seed.

    Attributes:
        slope: b.
        spread: sum over seeds and rates of (log r - the seed's mean)^2.
        residual: sum of squares about the line.
        points: rates x seeds.
        seeds: that have errors at two rates.
    """

    slope: float
    spread: float
    residual: float
    points: int
    seeds: int

    @property
    def freedom(self) -> int:
        """Return the degrees of freedom that are left for the noise."""
        return self.points - self.seeds - 1

    @property
    def noise(self) -> float | None:
        """Return the standard deviation of log errors about the line; None where none is known."""
        return (self.residual / self.freedom) ** 0.5 if self.freedom > 0 else None


def line_of(errors: Errors) -> Line | None:
    """Return the line through errors; those that are 0 or unknown are left out.

        log e_sr = a_s + b log r + noise

    Each seed has a level of its own, as its trials at all rates share data and start.

    Returns:
        None where no seed has errors at two rates.
    """
    x, y = [], []
    for by_rate in errors.values():
        pairs = [(rate, error) for rate, error in by_rate.items() if error]
        if len(pairs) > 1:
            rates, values = np.log(np.array(pairs, dtype=np.float64)).T
            x.append(rates - rates.mean())
            y.append(values - values.mean())
    if not x:
        return None
    rates, values = np.concatenate(x), np.concatenate(y)
    spread = float((rates**2).sum())
    if not spread:
        return None
    slope = float(rates @ values) / spread
    residual = float(((values - slope * rates) ** 2).sum())
    return Line(slope, spread, residual, len(rates), len(x))


def slope_of(errors: Errors, *, alpha: float = ALPHA) -> Slope | None:
    """Return the slope b of log error on log learning rate, with its interval.

        b +- t(1 - alpha / 2, n - seeds - 1) se(b),  se(b) = noise / sqrt(spread)

    Where too few errors are left for an interval, it is open.

    Args:
        errors: seed -> learning rate -> error.
        alpha: how often the interval may miss.

    Returns:
        None where no seed has errors at two rates.
    """
    line = line_of(errors)
    if line is None:
        return None
    low = high = None
    if line.noise is not None:
        from scipy.special import stdtrit  # takes a part of a second, at every command's start

        half = -float(stdtrit(line.freedom, alpha / 2)) * line.noise / line.spread**0.5
        low, high = line.slope - half, line.slope + half
    return Slope(slope=line.slope, low=low, high=high, points=line.points, confidence=1 - alpha)

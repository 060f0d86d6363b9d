"""By which power of the learning rate an error falls: a straight line through logarithms."""

from collections.abc import Mapping

import numpy as np

from qtool.reports.comparisons import Slope

CONFIDENCE = 0.95


def slope_of(errors: Mapping[int, Mapping[float, float | None]]) -> Slope | None:
    """Return the slope b of log error on log learning rate, with its interval.

        log e_sr = a_s + b log r + noise,   b +- t(0.975, n - seeds - 1) se(b)

    Each seed has a level of its own, as its trials at all rates share data and start. Errors that
    are 0 or unknown are left out. Where too few are left for an interval, it is open.

    Args:
        errors: seed -> learning rate -> error.

    Returns:
        None where no seed has errors at two rates.
    """
    known = {
        seed: [(rate, error) for rate, error in by_rate.items() if error]
        for seed, by_rate in errors.items()
    }
    known = {seed: pairs for seed, pairs in known.items() if len(pairs) > 1}
    x, y = [], []
    for pairs in known.values():
        rates, values = np.log(np.array(pairs, dtype=np.float64)).T
        x.append(rates - rates.mean())
        y.append(values - values.mean())
    spread = float(sum((part**2).sum() for part in x))
    if not spread:
        return None
    rates, values = np.concatenate(x), np.concatenate(y)
    slope = float(rates @ values) / spread
    freedom = len(rates) - len(known) - 1
    low = high = None
    if freedom > 0:
        from scipy.stats import t as student_t  # takes most of a second, at every command's start

        error = float(((values - slope * rates) ** 2).sum() / freedom / spread) ** 0.5
        half = float(student_t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
        low, high = slope - half, slope + half
    return Slope(slope=slope, low=low, high=high, points=len(rates))

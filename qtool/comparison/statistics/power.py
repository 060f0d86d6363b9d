"""What a comparison can find: the smallest effect, and how many seeds one takes.

An effect is a true difference of accuracies; it is found where the two-sided test of level alpha
rejects. With a spread of `freedom` degrees the statistic follows the noncentral t distribution.

Reference: Johnson and Welch, 1940, Applications of the non-central t-distribution, Biometrika 31.
"""

import numpy as np

from qtool.comparison.statistics.roots import root_of_rising
from qtool.comparison.statistics.several import ALPHA
from qtool.comparison.statistics.spread import NU0

POWER = 0.8  # found 4 times in 5
MOST_SEEDS = 1000  # more are not said
NODES = 100  # of the integral; more change the sixth digit


def power(effect: float, std: float, seeds: int, freedom: float, alpha: float = ALPHA) -> float:
    """Return how often an effect is found, 0..1.

        P(|T| > t(1 - alpha/2, freedom)),  T noncentral t by effect sqrt(seeds) / std

    T is (Z + shift) / sqrt(V / freedom) with V of chi-square: averaged over quantiles of V, as
    SciPy's own series give no number for large shifts.

    Args:
        effect: true difference.
        std: of the difference of one seed.
        seeds: of the comparison.
        freedom: degrees of freedom that the spread will have.
        alpha: level of the test.
    """
    from scipy.special import gammaincinv, ndtr, stdtrit

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    chi_square = 2 * gammaincinv(freedom / 2, (nodes + 1) / 2)
    limits = -stdtrit(freedom, alpha / 2) * np.sqrt(chi_square / freedom)
    shift = abs(effect) * seeds**0.5 / std
    return float((ndtr(shift - limits) + ndtr(-shift - limits)) @ weights / 2)


def detectable_effect(
    std: float, seeds: int, freedom: float, alpha: float = ALPHA, found: float = POWER
) -> float:
    """Return the effect that is found in a share `found` of all comparisons; see `power`."""
    unit, top = std / seeds**0.5, 4.0
    while power(top * unit, std, seeds, freedom, alpha) < found:
        top *= 2

    def missing(effect: float) -> float:
        return power(effect, std, seeds, freedom, alpha) - found

    return root_of_rising(missing, 0.0, top * unit)


def seeds_needed(
    effect: float, std: float, alpha: float = ALPHA, *, extra: float = NU0
) -> int | None:
    """Return the fewest seeds that find an effect in POWER of all comparisons; see `power`.

    Args:
        effect: true difference.
        std: of the difference of one seed.
        alpha: level of the test.
        extra: degrees of freedom beside those of the seeds: NU0 by the images, 0 without them.

    Returns:
        None where MOST_SEEDS are too few.
    """

    def enough(seeds: int) -> bool:
        return power(effect, std, seeds, extra + seeds - 1, alpha) >= POWER

    low, high = 1, MOST_SEEDS
    if not enough(high):
        return None
    while high - low > 1:  # power grows with the seeds
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high

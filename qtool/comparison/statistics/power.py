"""What a comparison can find: the smallest effect, and how many seeds one takes.

An effect is a true difference of accuracies; it is found where the two-sided test of level alpha
rejects. That depends on how the spread s~ that the test divides by will come out, seen here at
NODES of its quantiles. With a spread of independent normal numbers the statistic follows the
noncentral t distribution; the spread of a comparison is part seeds, part images (`spread_by`).

Reference: Johnson and Welch, 1940, Applications of the non-central t-distribution, Biometrika 31.
"""

import numpy as np

from qtool.comparison.statistics.gaps import Floats
from qtool.comparison.statistics.roots import root_of_rising
from qtool.comparison.statistics.several import ALPHA
from qtool.comparison.statistics.spread import spread_by

POWER = 0.8  # found 4 times in 5
MOST_SEEDS = 1000  # more are not said
NODES = 400  # quantiles of chi-square, equally likely; more change the fourth digit


def power(shift: float, limits: Floats) -> float:
    """Return how often an effect is found, 0..1.

        mean over V of P(|Z + shift| > limit(V)),  Z normal

    Args:
        shift: true difference over its true standard error.
        limits: what the observed one has to be beyond, from `limits_of_t` or
            `limits_of_comparison`.
    """
    from scipy.special import ndtr

    return float((ndtr(abs(shift) - limits) + ndtr(-abs(shift) - limits)).mean())


def found_shift(limits: Floats, found: float = POWER) -> float:
    """Return the effect, in standard errors, that is found in a share `found` of all cases."""
    top = 4.0
    while power(top, limits) < found:
        top *= 2
    return root_of_rising(lambda shift: power(shift, limits) - found, 0.0, top)


def limits_of_t(freedom: float, alpha: float = ALPHA) -> Floats:
    """Return what is found, in true standard errors: t(1 - alpha/2, freedom) sqrt(V / freedom).

    Args:
        freedom: degrees of freedom of the spread, of which V is chi-square.
        alpha: level of the test.
    """
    from scipy.special import stdtrit

    return -stdtrit(freedom, alpha / 2) * np.sqrt(_chi_square(freedom) / freedom)


def limits_of_comparison(
    std: float, seeds: int, of_images: float | None, alpha: float = ALPHA
) -> Floats:
    """Return what a comparison finds, in true standard errors, by how its seeds may come out.

        t(1 - alpha/2, freedom of s~) s~ / std,   s~ of s^2 = std^2 V / (n - 1)

    Args:
        std: true standard deviation of the difference of one seed.
        seeds: of the comparison, n, 2 at least.
        of_images: s_img^2, as `Gaps` has it, above 0; None where images are not known.
        alpha: level of the test.
    """
    from scipy.special import stdtrit

    if of_images is None:
        return limits_of_t(seeds - 1, alpha)
    of_seeds = std**2 * _chi_square(seeds - 1) / (seeds - 1)
    spread = spread_by(seeds, of_seeds, np.full_like(of_seeds, of_images))
    return -stdtrit(spread.freedom, alpha / 2) * spread.std / std


def detectable_effect(
    std: float, seeds: int, of_images: float | None, alpha: float = ALPHA, found: float = POWER
) -> float:
    """Return the effect that is found in a share `found` of comparisons of so many seeds.

    The arguments are those of `limits_of_comparison`.
    """
    limits = limits_of_comparison(std, seeds, of_images, alpha)
    return found_shift(limits, found) * std / seeds**0.5


def seeds_needed(
    effect: float, std: float, of_images: float | None, alpha: float = ALPHA
) -> int | None:
    """Return the fewest seeds that find an effect in POWER of all comparisons.

    Args:
        effect: true difference.
        std: of the difference of one seed.
        of_images: s_img^2; None where images are not known.
        alpha: level of the test.

    Returns:
        None where MOST_SEEDS are too few.
    """

    def enough(seeds: int) -> bool:
        limits = limits_of_comparison(std, seeds, of_images, alpha)
        return power(effect * seeds**0.5 / std, limits) >= POWER

    low, high = 1, MOST_SEEDS
    if not enough(high):
        return None
    while high - low > 1:  # power grows with the seeds
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _chi_square(freedom: float) -> Floats:
    """Return quantiles of chi-square in the middle of NODES parts that are equally likely."""
    from scipy.special import gammaincinv

    return 2 * gammaincinv(freedom / 2, (np.arange(NODES) + 0.5) / NODES)

"""How far the differences of single seeds lie apart, from few seeds and many images.

The variance over a few seeds is itself hardly known. What networks get right, image by image,
predicts it: were their errors independent, it would be s_img^2, and of trained networks it is 1.4
times that. So C s_img^2 counts like NU0 more seeds. Where the seeds contradict it (some collapsed,
or one arm is far noisier than its images tell), they are believed alone.

The constants were chosen on simulated comparisons of arms that are the same, true s^2 / s_img^2
from .5 to 5, and reported on fresh ones (`python -m tests.comparison.simulation`): NU0 = 3, or a
contradiction only beyond 3 s_img^2, name a winner in 8 % of them where that ratio is 5.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtool.comparison.statistics.gaps import Floats, Gaps

NU0 = 2.0  # seeds that the prediction counts like
C = 2.0  # seed variance over what independent errors predict; measured is 1.4
CONTRADICTED = 0.01  # probability of the seeds' variance, if errors were independent
BY_MANY = 0.1  # the same of MANY seeds and more, which know their variance themselves
MANY = 4


@dataclass(frozen=True)
class Spread:
    """The standard deviation of the difference of one seed; arrays of one shape, or [].

    Attributes:
        std: s~.
        freedom: degrees of freedom of it.
        by_images: the images took part in it.
    """

    std: Floats
    freedom: Floats
    by_images: NDArray[np.bool_]


def spread_of(gaps: Gaps) -> Spread:
    """Return how far seeds lie apart: by seeds and images, or by seeds alone; see `spread_by`."""
    if not gaps.images or gaps.seeds < 2:
        alone = np.full_like(gaps.mean, gaps.seeds - 1.0)
        return Spread(np.sqrt(gaps.of_seeds), alone, np.zeros(gaps.mean.shape, dtype=bool))
    return spread_by(gaps.seeds, gaps.of_seeds, gaps.of_images, gaps.of_counting)


def spread_by(n: int, of_seeds: Floats, of_images: Floats, floor: float = 0.0) -> Spread:
    """Return how far n seeds lie apart by their variance s^2 and what images predict, s_img^2.

        s~^2 = (NU0 C s_img^2 + (n - 1) s^2) / (NU0 + n - 1),   s~ >= 1 / (N sqrt 6)

    with NU0 + n - 1 degrees of freedom. By seeds alone, s with n - 1 degrees, where the images are
    not known, or P(F(n - 1, inf) > s^2 / s_img^2) < CONTRADICTED (BY_MANY). The floor, 1 / (6 N^2),
    is that of `Gaps.of_counting`.

    The weighted mean is the posterior of a variance under a scaled inverse chi-square prior (Gelman
    et al., 2013, Bayesian Data Analysis, 2.6; Smyth, 2004, has it for many variances at once).
    """
    from scipy.special import gammaincc

    freedom = NU0 + n - 1
    both = (NU0 * C * of_images + (n - 1) * of_seeds) / freedom
    expected = np.maximum(of_images, floor)
    # the upper tail of chi-square with n - 1 degrees at (n - 1) s^2 / expected
    tail = gammaincc((n - 1) / 2, (n - 1) * of_seeds / expected / 2)
    used = tail >= (CONTRADICTED if n < MANY else BY_MANY)
    std = np.sqrt(np.maximum(np.where(used, both, of_seeds), floor))
    return Spread(std, np.where(used, freedom, n - 1.0), used)


def spread_on_new_images(gaps: Gaps, spread: Spread) -> Floats:
    """Return the standard error of m as an estimate for seeds and images that are both new.

        se^2 = s~^2 / n + max(0, Var_i(mean_j d_ij) / N - s_img^2 / n)

    Of the variance over images the part that comes from few seeds is in s~ already.

    Reference: Owen, 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), whose
    resampling of rows and columns it is checked against.
    """
    by_images = gaps.over_images / gaps.images - gaps.of_images / gaps.seeds
    return np.sqrt(spread.std**2 / gaps.seeds + np.maximum(0, by_images))

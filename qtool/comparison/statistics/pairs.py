"""Two networks on the same images: what one seed, or two files, can say."""

from dataclasses import dataclass

import numpy as np

from qtool.comparison.statistics.gaps import Right


@dataclass(frozen=True)
class Discordant:
    """The images on which two networks differ in being right.

    Attributes:
        first_only: images that only the first gets right.
        second_only: images that only the second gets right.
        p_value: of such counts or more extreme ones, if both were as often right.
    """

    first_only: int
    second_only: int
    p_value: float


def discordant(first: Right, second: Right) -> Discordant:
    """Return the images on which two networks differ, and the exact test of McNemar on them.

        p = min(1, 2 P(Bin(b + c, 1/2) <= min(b, c)))

    It is a test of two networks on more such images, and says nothing of other seeds.

    Args:
        first: which images one of them gets right, bool [images].
        second: likewise of the other, in the same order.

    Reference: McNemar, 1947, Psychometrika 12; in its exact form Dietterich, 1998, Neural
    Computation 10(7).
    """
    from scipy.stats import binom

    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return Discordant(b, c, min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5))))

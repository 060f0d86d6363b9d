"""Two arms' answers on the same images, seed by seed: the figures that everything else needs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Right = NDArray[np.bool_]  # [..., seeds, images]: which images each seed's network gets right


@dataclass(frozen=True)
class Gaps:
    """Figures of d_ij = [A right] - [B right] of image i and seed j; arrays of one shape, or [].

    Attributes:
        seeds: how many, n.
        images: how many, N; 0 where only the accuracies are known.
        mean: of all d_ij, m.
        of_seeds: s^2, the variance over seeds of a seed's mean; nan of one seed.
        of_images: s_img^2 = N^-2 sum_i Var_j(d_ij), what s^2 would be if the networks' errors on
            different images were independent of each other; nan where it is not known.
        over_images: Var_i(mean_j d_ij); nan where it is not known.
    """

    seeds: int
    images: int
    mean: Floats
    of_seeds: Floats
    of_images: Floats
    over_images: Floats

    @property
    def of_counting(self) -> float:
        """Return 1 / (6 N^2): an accuracy is a count, so each of two is off by half an image."""
        return 1 / (6 * self.images**2)


def gaps_between(a: Right, b: Right) -> Gaps:
    """Return the figures of two arms' answers, each bool [..., seeds, images], in one order."""
    return gaps_of(a.astype(np.int8) - b.astype(np.int8), a.shape[-1])


def gaps_of(d: NDArray[np.int8], images: int) -> Gaps:
    """Return the figures of differences of answers.

    Args:
        d: -1, 0 or 1, [..., seeds, images]; images on which all networks agree may be left out.
        images: how many there are, N, those left out too.
    """
    seeds = d.shape[-2]
    by_seed = d.sum(-1, dtype=np.int64) / images
    by_image = d.sum(-2, dtype=np.int64)  # n times the mean over seeds
    mean = by_seed.mean(-1)
    squares = (by_image.astype(np.float64) ** 2).sum(-1) / seeds**2
    over_images = (squares - images * mean**2) / max(1, images - 1)
    if seeds == 1:
        unknown = np.full_like(mean, np.nan)
        return Gaps(seeds, images, mean, unknown, unknown, over_images)
    differing = np.abs(d).sum((-2, -1), dtype=np.int64)  # sum of d_ij^2
    of_images = (differing - seeds * squares) / (seeds - 1) / images**2
    return Gaps(seeds, images, mean, by_seed.var(-1, ddof=1), of_images, over_images)


def gaps_of_accuracies(values: Floats) -> Gaps:
    """Return the figures where only the differences of accuracies are known, [..., seeds]."""
    mean = values.mean(-1)
    unknown = np.full_like(mean, np.nan)
    of_seeds = values.var(-1, ddof=1) if values.shape[-1] > 1 else unknown
    return Gaps(values.shape[-1], 0, mean, of_seeds, unknown, unknown)

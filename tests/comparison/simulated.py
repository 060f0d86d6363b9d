"""Comparisons that were never trained: answers drawn from a model of networks, with known truth.

Each network's errors are drawn image by image. Most images are easy; of the H others network j of
an arm gets image i right where u_ij < chance_i + shift_j, u uniform. The shift, one of each
network, makes the networks of an arm differ by more than independent errors would, and pairs of
images with u and 1 - u make them differ by less. A collapsed network names one class for all.
`tests.comparison.simulation` makes tables of it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from qtool.comparison.statistics.gaps import Gaps

HARD = 0.08  # share of images; the other networks get right: an accuracy of 96 %
NOISIER = 2.5
CLASSES = 10  # that a collapsed network can name
Floats = NDArray[np.float64]
Shape = Literal["normal", "skewed"]


@dataclass(frozen=True)
class Nature:
    """What networks are like.

    Attributes:
        images: of the validation set, N.
        ratio: variance over seeds of an arm's accuracy over what independent errors predict.
        shape: of the shifts: normal, or exponential towards failure.
        collapses: probability that a network says nonsense.
        noisy: which arm's accuracy has NOISIER times the standard deviation; None of none. Then
            the ratio is that of its difference from another arm.
    """

    images: int = 500
    ratio: float = 1.4
    shape: Shape = "normal"
    collapses: float = 0.0
    noisy: int | None = None

    @property
    def hard(self) -> int:
        """Return how many images are not easy, H: an even number."""
        return 2 * round(HARD * self.images / 2)

    def ratio_of(self, arm: int) -> float:
        """Return the ratio of one arm alone."""
        if self.noisy is None:
            return self.ratio
        return 2 * self.ratio / (1 + NOISIER**2) * (NOISIER**2 if arm == self.noisy else 1)


@dataclass(frozen=True)
class Shifts:
    """How an arm's shifts are drawn: offset + size times a number of mean 0 and variance 1."""

    offset: float
    size: float


def standard(shape: Shape, random: np.random.Generator, count: tuple[int, ...]) -> Floats:
    """Draw numbers of mean 0 and variance 1."""
    if shape == "normal":
        return random.standard_normal(count)
    return 1 - random.exponential(1.0, count)


def chances(hard: int) -> Floats:
    """Return each hard image's chance to be got right, pairs of images alike."""
    return (np.arange(hard // 2).repeat(2) + 0.5) / (hard // 2)


def moments(hard: int) -> tuple[Floats, Floats, Floats]:
    """Return shifts, and mean and variance of the hits among hard images at each."""
    steps = np.linspace(-3, 3, 1201)
    chance = np.clip(chances(hard)[None] + steps[:, None], 0, 1)
    return steps, chance.sum(1), (chance * (1 - chance)).sum(1)


@lru_cache(maxsize=256)
def shifts_for(hard: int, ratio: float, shape: Shape) -> Shifts:
    """Return the shifts that give a ratio of variances, and leave the mean accuracy as it is."""
    if ratio <= 1:
        return Shifts(0.0, 0.0)
    even = (np.arange(4000) + 0.5) / 4000
    drawn = ndtri(even) if shape == "normal" else 1 + np.log1p(-even)
    steps, means, variances = moments(hard)
    plain = np.interp(0, steps, variances)

    def offset_for(size: float) -> float:
        low, high = -1.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            above = np.interp(middle + size * drawn, steps, means).mean() > hard / 2
            low, high = (low, middle) if above else (middle, high)
        return low

    low, high = 0.0, 1.0
    for _ in range(25):
        size = (low + high) / 2
        shifts = offset_for(size) + size * drawn
        within = np.interp(shifts, steps, variances).mean()
        found = (np.interp(shifts, steps, means).var() + within) / plain
        low, high = (low, size) if found > ratio else (size, high)
    return Shifts(offset_for(low), low)


@dataclass(frozen=True)
class Answers:
    """Which images networks get right, [comparisons, arms, seeds, images] each.

    Attributes:
        hard: of the hard images.
        easy: of the easy ones, which come in CLASSES alike groups.
        images: N.
        planted: images that all networks of the last arm get right, and no others.
    """

    hard: NDArray[np.int8]
    easy: NDArray[np.int8]
    images: int
    planted: float = 0.0

    def gaps(self, arm: int, seeds: slice, against: int = 0) -> Gaps:
        """Return the figures of an arm's differences from another, [comparisons]."""
        n = seeds.stop - seeds.start
        weight = (self.images - self.hard.shape[-1]) / CLASSES
        planted = self.planted if arm == self.hard.shape[1] - 1 else 0.0
        by_seed, differing, squares = planted, planted * n, planted * n**2
        for part, each in ((self.hard, 1.0), (self.easy, weight)):
            d = part[:, arm, seeds] - part[:, against, seeds]
            by_seed = by_seed + each * d.sum(-1, dtype=np.int32)
            differing = differing + each * np.abs(d).sum((-2, -1), dtype=np.int32)
            squares = squares + each * (d.sum(-2, dtype=np.int32).astype(float) ** 2).sum(-1)
        means = np.asarray(by_seed) / self.images
        mean = means.mean(-1)
        over = (squares / n**2 - self.images * mean**2) / (self.images - 1)
        of_images = (differing - squares / n) / (n - 1) / self.images**2
        return Gaps(n, self.images, mean, means.var(-1, ddof=1), of_images, over)


def draw(
    nature: Nature,
    comparisons: int,
    arms: int,
    seeds: int,
    random: np.random.Generator,
    *,
    effect: float = 0.0,
) -> Answers:
    """Draw the answers of all networks of some comparisons; the last arm is better by an effect.

    Args:
        nature: of the networks.
        comparisons: how many.
        arms: how many, the first is what the others are compared with.
        seeds: how many of each arm.
        random: numbers.
        effect: the last arm's true accuracy over that of the others.
    """
    hard, shape = nature.hard, nature.shape
    shift = np.empty((comparisons, arms, seeds))
    u = random.integers(0, 2**16, (comparisons, arms, seeds, hard), dtype=np.uint16)
    for arm in range(arms):
        ratio = nature.ratio_of(arm)
        law = shifts_for(hard, ratio, shape)
        shift[:, arm] = law.offset + law.size * standard(shape, random, (comparisons, seeds))
        if ratio < 1:  # half the variance where all images are paired
            paired = np.flatnonzero(random.random(hard // 2) < 2 * (1 - ratio))
            u[:, arm, :, 2 * paired + 1] = 2**16 - 1 - u[:, arm, :, 2 * paired]
    limit = np.clip(chances(hard) + shift[..., None], 0, 1) * 2**16
    right = (u < limit.astype(np.float32)).view(np.int8)
    easy = np.ones((comparisons, arms, seeds, CLASSES), dtype=np.int8)
    if nature.collapses:
        lost = random.random((comparisons, arms, seeds)) < nature.collapses
        named = random.integers(0, CLASSES, (comparisons, arms, seeds))[..., None]
        easy[lost] = (np.arange(CLASSES) == named)[lost]
        right[lost] = (np.arange(hard) % CLASSES == named)[lost]
    return Answers(right, easy, nature.images, effect * nature.images)

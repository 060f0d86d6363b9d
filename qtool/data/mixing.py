"""Batches whose images are mixed with each other, and whose labels are shares of the classes.

All draws depend on seed, epoch and the batch's place in it, so that a run that goes on mixes as it
would have. Each image is mixed with the one before it in its batch, which is shuffled.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as nn_functional

from qtool.data.batches import Batches
from qtool.registry import Registry

Drawn = np.random.Generator
Mix = Callable[[Tensor, Drawn], tuple[Tensor, float]]
Alpha = Annotated[float, Field(gt=0, le=1000)]
MIXES: Registry[Callable[..., tuple[Tensor, float]]] = Registry("mix")
STREAM = 2  # of random numbers: those of orders, crops and transforms are others


@MIXES.add
def mixup(images: Tensor, draw: Drawn, *, alpha: Alpha = 0.2) -> tuple[Tensor, float]:
    """Add up images: x_i <- s x_i + (1 - s) x_(i-1), s ~ Beta(alpha, alpha), one for a batch.

    Reference: Zhang et al., 2017, arXiv:1710.09412.
    """
    share = float(draw.beta(alpha, alpha))
    return images.lerp(images.roll(1, 0), 1 - share), share


@MIXES.add
def cutmix(images: Tensor, draw: Drawn, *, alpha: Alpha = 1.0) -> tuple[Tensor, float]:
    """Paste a box of x_(i-1) into x_i; s ~ Beta(alpha, alpha) is the share outside the box.

    The box has the image's aspect and a uniform centre; s is what is left of x_i in fact.

    Reference: Yun et al., 2019, arXiv:1905.04899.
    """
    share = float(draw.beta(alpha, alpha))
    height, width = images.shape[-2:]
    half = 0.5 * math.sqrt(1 - share)
    down, across = int(draw.integers(height)), int(draw.integers(width))
    top, bottom = max(0, down - int(half * height)), min(height, down + int(half * height))
    left, right = max(0, across - int(half * width)), min(width, across + int(half * width))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


class Mixed:
    """Batches, each mixed in one of several ways, which is drawn for it."""

    def __init__(self, inner: Batches, mixes: tuple[Mix, ...], classes: int, seed: int) -> None:
        """Take batches of images and labels, int64 [B] or float [B, classes]."""
        self._inner, self._mixes, self._classes, self._seed = inner, mixes, classes, seed

    @property
    def samples(self) -> int:
        """Number of images in the set."""
        return self._inner.samples

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._inner)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield mixed images, float32 [B, C, H, W], and shares of classes, float32 [B, classes]."""
        for place, (images, labels) in enumerate(self._inner.batches(epoch, start), start):
            draw = np.random.default_rng([self._seed, epoch, place, STREAM])
            mix = self._mixes[int(draw.integers(len(self._mixes)))]
            mixed, share = mix(images, draw)
            shares = labels
            if not labels.is_floating_point():
                shares = nn_functional.one_hot(labels, self._classes).to(torch.float32)
            yield mixed, shares.lerp(shares.roll(1, 0), 1 - share)

    def part(self, rank: int, size: int) -> "Mixed":
        """Return the same with rows rank, rank + size, ... of each batch, mixed among themselves.

        What is drawn for a batch is the same in all parts.
        """
        return Mixed(self._inner.part(rank, size), self._mixes, self._classes, self._seed)

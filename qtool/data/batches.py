"""What every loader gives: batches of normalised images, whose order only seed and epoch set."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Batches(Protocol):
    """One half of a data set, cut into batches."""

    @property
    def samples(self) -> int:
        """Number of images in the set, those of a dropped last batch included."""
        ...

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch, the same ones whenever the epoch is the same.

        Args:
            epoch: counts from 0.
            start: how many of its first batches are left out; nothing is read for those.

        Yields:
            Normalised images, float32 [B, C, H, W], and their classes, int64 [B], or numbers to
            be met, float32 [B].
        """
        ...

    def part(self, rank: int, size: int) -> "Batches":
        """Return the same batches with rows rank, rank + size, ... of each alone.

        What happens to an image stays as it is; the last batch may leave nothing for some ranks.
        """
        ...


class Repeated:
    """Batches of several passes over a set, one after the other, as one epoch."""

    def __init__(self, one_pass: Batches, passes: int) -> None:
        """Take what gives the batches of one pass; each pass has an order of its own."""
        self._one_pass, self._passes = one_pass, passes

    @property
    def samples(self) -> int:
        """Number of images in the set, each counted once."""
        return self._one_pass.samples

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._passes * len(self._one_pass)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of all passes of one epoch, from batch `start` on."""
        whole, start = divmod(start, len(self._one_pass))
        for number in range(epoch * self._passes + whole, (epoch + 1) * self._passes):
            yield from self._one_pass.batches(number, start)
            start = 0

    def part(self, rank: int, size: int) -> "Repeated":
        """Return the same batches with rows rank, rank + size, ... of each alone."""
        return Repeated(self._one_pass.part(rank, size), self._passes)


def batch_sizes(samples: int, batch_size: int, *, drop_last: bool) -> list[int]:
    """Cut `samples` images into batches.

    `drop_last` leaves out the last batch where it is smaller than the others, because batch norm
    has nothing to learn from one image; the only batch always stays.
    """
    full, rest = divmod(samples, batch_size)
    sizes = [batch_size] * full
    return sizes if rest == 0 or (drop_last and full) else [*sizes, rest]


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator that depends on `numbers` >= 0 only; near numbers share nothing."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Normalizer:
    """Turn uint8 images into what a network takes: (x / 255 - mean) / std, per channel."""

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        channels: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        """Prepare for images with `len(mean)` channels, grey repeated to `channels`."""
        self.channels = channels
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._mean = 255 * torch.tensor(mean, device=device).reshape(-1, 1, 1)
        self._std = 255 * torch.tensor(std, device=device).reshape(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise `images`, uint8 [B, C, H, W], to float32 [B, channels, H, W].

        Floats are no pictures, and stay as they are.
        """
        if images.is_floating_point():
            return images
        normalised = (images.to(torch.float32) - self._mean) / self._std
        repeated = normalised.expand(-1, self.channels, -1, -1)
        return repeated.contiguous(memory_format=self._memory_format)

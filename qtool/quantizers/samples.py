"""A sample of a tensor's values that stands for all of them.

It holds the largest values themselves, for they alone say where saturating them pays off, and of
the rest an even sample: one value of each of equally long stretches, at a place within it that is
scrambled. A fixed stride instead would show one column only where a width divides it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 1 << 18  # values: a mean of |x| is then within 0.5 % where |x| spreads as an exponential
TAIL = 1 << 12  # largest values: 99.9 % of 4 million others lie below them
STRETCH = 1 << 20  # values that are looked through at once: torch.topk takes 16 bytes for each
FEWEST_PER_TAIL = 64  # values to each of the tail: the rest must stay what the sample is of
_MIX = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd, of 32 bits, as xxHash's primes
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of one tensor.

    Attributes:
        count: of the tensor's values.
        extremes: float32 [2], the smallest and the largest value.
        tail: float32 [T], the values of the largest |x|.
        values: float32 [K], an even sample of all values, or all of them in their order.
    """

    count: int
    extremes: Tensor
    tail: Tensor
    values: Tensor

    @classmethod
    def of(cls, x: Tensor, size: int) -> "Sample":
        """Return a sample of at most `size` values, and the tail, of a tensor of any shape."""
        values = x.detach().flatten().float()  # in the order of its places, not of its memory
        extremes = torch.stack([values.amin(), values.amax()])
        longest = min(TAIL, values.numel() // FEWEST_PER_TAIL)
        return cls(values.numel(), extremes, _largest(values, longest), even_sample(values, size))

    def thinned(self, size: int) -> "Sample":
        """Return a sample of at most `size` of the values."""
        return Sample(self.count, self.extremes, self.tail, even_sample(self.values, size))

    @property
    def is_whole(self) -> bool:
        """Tell whether it holds every value."""
        return self.values.numel() == self.count

    def weighed(self) -> tuple[Tensor, Tensor]:
        """Return values [K], the extremes among them, and how many of the tensor's each stands for.

        The tail's smallest may have equals outside, as a ReLU6 makes: the sample stands for them.
        """
        if self.is_whole:
            return self.values, torch.ones_like(self.values)
        if not self.tail.numel():
            each = self.count / self.values.numel()
            weights = torch.full_like(self.values, each)
            return torch.cat([self.extremes, self.values]), _after_zeros(2, weights)
        sizes = self.tail.abs()
        smallest = sizes.amin()
        above, inside = (sizes > smallest).float(), (self.values.abs() <= smallest).float()
        each = (self.count - above.sum()) / inside.sum().clamp_min(1)
        rows = torch.cat([self.extremes, self.tail, self.values])
        return rows, _after_zeros(2, torch.cat([above, inside * each]))


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the `count` values [N] of the largest |x|, the largest first."""
    found = [
        stretch[stretch.abs().topk(min(count, stretch.numel())).indices]
        for stretch in values.split(STRETCH)
    ]
    if len(found) == 1:
        return found[0]
    largest = torch.cat(found)
    return largest[largest.abs().topk(count).indices]


def _after_zeros(zeros: int, weights: Tensor) -> Tensor:
    return torch.cat([weights.new_zeros(zeros), weights])


def even_sample(values: Tensor, size: int) -> Tensor:
    """Return one value of each of `size` stretches of values [N]; all of them where N <= size.

    Where in its stretch is a hash of the stretch's number: no random state is touched, and no
    pattern in the values goes with it.
    """
    count = values.numel()
    if count <= size:
        return values
    stretch = torch.arange(size, device=values.device)
    first = stretch * count // size
    length = (stretch + 1) * count // size - first
    return values[first + _scrambled(stretch) % length]


def _scrambled(numbers: Tensor) -> Tensor:
    """Return a hash of int64 numbers, 0 .. 2^32 - 1: multiply, and fold the upper bits in."""
    hashed = numbers
    for prime in _MIX:
        hashed = (hashed * prime) & _WORD
        hashed = hashed ^ (hashed >> 15)
    return hashed

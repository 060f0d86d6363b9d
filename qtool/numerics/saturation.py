"""Which integer layers can saturate on processors without VNNI, told from their codes.

An x86 processor with AVX2 or AVX-512, but without VNNI, multiplies uint8 inputs by int8 weights in
pairs (vpmaddubsw): the products of two neighbours are added in int16, and a sum beyond it is cut
off. Neighbours are the weights 2i and 2i + 1 of an output channel in the kernel's order of
summation, which is the same in all kernels of ONNX Runtime (MLAS): position in the kernel first,
then the input channel within the group, as (kernel height, kernel width, channel); inputs in order
for a linear layer. Kernels pack four of them at a time, and start anew only at multiples of four.

- a convolution is a matrix product on patches, or with int8 weights (more than 15 output channels,
  no groups, channels in fours) one without a copy of the patches: both in that order;
- a depthwise convolution has a kernel of its own that widens each product: it never saturates;
- a product of an input of one row (a vector) has a kernel of its own in the same order.

Products of different signs cannot saturate together, for one alone always fits (255 * 128 < 2^15).
With weights as uint8 around the zero point 128 kernels widen to int16 first, and sums are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid

HIGHEST, LOWEST = 2**15 - 1, -(2**15)  # of an int16
MIDDLE = 128  # the byte that stands for 0 where codes are signed


def largest_byte(grid: IntegerGrid) -> int:
    """Return the largest byte that an input on this grid is handed to a kernel as.

    Signed grids travel as uint8 around 128.

    >>> largest_byte(IntegerGrid(4, "unsigned")), largest_byte(IntegerGrid(4, "full"))
    (15, 135)
    """
    return grid.code_max + (MIDDLE if grid.signed else 0)


def is_depthwise(shape: Sequence[int], groups: int) -> bool:
    """Tell whether a weight [O, C / groups, ...] has one channel in and one out of each group."""
    return len(shape) > 2 and shape[1] == 1 and shape[0] == groups


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Which weights of a row a kernel adds in int16, and how far their codes may go together.

    Attributes:
        other: of each weight the neighbour, or itself where it has none, int64 [K], in the order
            of memory.
        highest: the sum that two positive codes may have.
        lowest: the sum that two negative codes may have.
    """

    other: Tensor
    highest: int
    lowest: int

    @classmethod
    def of(cls, shape: Sequence[int], largest_input: int) -> Self:
        """Return the neighbours in a weight that is not depthwise, in one group.

        Args:
            shape: of the weight, [O, C / groups, ...] or [O, C].
            largest_input: the largest byte of the input, from `largest_byte`.

        Examples:
            >>> Neighbours.of([8, 3, 1, 2], 255)  # channels of a position lie two apart
            Neighbours(other=tensor([2, 4, 0, 5, 1, 3]), highest=128, lowest=-128)
        """
        count = torch.Size(shape[1:]).numel()
        order = torch.arange(count).reshape(tuple(shape[1:])).movedim(0, -1).flatten()
        beside = torch.arange(count) ^ 1
        if count % 2:
            beside[-1] = count - 1
        other = torch.empty_like(order)
        other[order] = order[beside]
        return cls(other, HIGHEST // largest_input, -(-LOWEST // largest_input))

    def held(self, codes: Tensor, beside: Tensor) -> Tensor:
        """Return codes held where they fit beside those of their neighbours, of one shape.

        >>> two = Neighbours.of([1, 2], 255)
        >>> two.held(torch.tensor([100, 100, -127]), torch.tensor([50, -50, -2]))
        tensor([  78,  100, -126])
        """
        most, least = self.highest - beside.clamp_min(0), self.lowest - beside.clamp_max(0)
        return torch.minimum(torch.maximum(codes, least), most)

    def parted(self, codes: Tensor) -> Tensor:
        """Return codes [..., K] of which two that go too far together have both gone back alike.

        >>> Neighbours.of([1, 4], 255).parted(torch.tensor([100, 51, -127, -2]))
        tensor([  88,   40, -126,   -2])
        """
        other = self.other.to(codes.device)
        own = torch.arange(len(other), device=codes.device)
        alone, later = own == other, own > other
        made = codes.clone()
        for sign, most in ((1, self.highest), (-1, -self.lowest)):
            sizes = (sign * codes).clamp_min(0)
            beyond = (sizes + sizes[..., other] - most).clamp_min(0)
            half = (beyond + ~later) // 2
            made = torch.where(alone, made, made - sign * half)
        return made


def can_saturate(codes: Tensor, largest_input: int, *, groups: int = 1) -> Tensor:
    """Tell of each output channel whether some input saturates its sums, bool [O].

    Args:
        codes: integers of any type, [O, C / groups, ...] or [O, C].
        largest_input: the largest byte of the input, from `largest_byte`.
        groups: of the convolution.

    Examples:
        >>> can_saturate(torch.tensor([[64, 65], [64, 64], [127, -127]]), 255)
        tensor([ True, False, False])
    """
    if is_depthwise(codes.shape, groups):
        return torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
    rows = codes.to(torch.int32)
    rows = rows.movedim(1, -1).reshape(len(rows), -1)
    if rows.shape[1] % 2:
        rows = torch.cat([rows, rows.new_zeros(len(rows), 1)], 1)
    pairs = rows.reshape(len(rows), -1, 2)
    highest = largest_input * pairs.clamp_min(0).sum(2)
    lowest = largest_input * pairs.clamp_max(0).sum(2)
    return ((highest > HIGHEST) | (lowest < LOWEST)).any(1)


def widths_can_saturate(
    weight: IntegerGrid, largest_input: int, shape: Sequence[int], groups: int = 1
) -> bool:
    """Tell whether some codes of a grid can saturate, before there are codes.

    Args:
        weight: the grid of the codes.
        largest_input: the largest byte of the input, from `largest_byte`.
        shape: of the weight, [O, C / groups, ...] or [O, C].
        groups: of the convolution.

    Examples:
        >>> eight, seven = IntegerGrid(8, "narrow"), IntegerGrid(7, "narrow")
        >>> widths_can_saturate(eight, 255, [8, 4, 3, 3]), widths_can_saturate(seven, 255, [8, 4])
        (True, False)
        >>> widths_can_saturate(eight, 255, [8, 1, 3, 3], groups=8)  # depthwise
        False
    """
    ends = torch.tensor([[weight.code_max], [weight.code_min]]).expand(2, 2)
    alone = torch.Size(shape[1:]).numel() < 2
    if alone or is_depthwise(shape, groups):
        return False
    return bool(can_saturate(ends, largest_input).any())


def with_fewer_steps(grid: IntegerGrid) -> IntegerGrid:
    """Return the grid of one bit less, whose codes are among those of `grid`.

    That of 7 bits cannot saturate: 255 * (63 + 63) < 2^15 and 255 * (64 + 64) < 2^15.

    >>> (fewer := with_fewer_steps(IntegerGrid(8, "full"))).code_min, fewer.code_max
    (-64, 63)
    """
    return IntegerGrid(grid.bits - 1, grid.kind)

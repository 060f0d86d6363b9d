"""Which elements of a weight make one output channel: its rows.

The weight of a convolution, [C, in / groups, ...], and that of a linear layer, [C, in], have a row
for each output channel. That of a transposed convolution is [in, C / groups, ...], where the first
in / groups entries belong to the first group, and so on. All of qtool counts, scales and rounds
rows [C, in / groups, ...]; a layer computes, and files hold, the weight as torch has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WeightRows:
    """How the rows of a weight lie in it.

    Attributes:
        transposed: it is that of a transposed convolution.
        groups: of that convolution; not asked for elsewhere.
    """

    transposed: bool = False
    groups: int = 1

    @property
    def axis(self) -> int | None:
        """Return the axis of the weight that the output channels lie along; None if there is none.

        >>> WeightRows().axis, WeightRows(transposed=True).axis
        (0, 1)
        """
        if not self.transposed:
            return 0
        return 1 if self.groups == 1 else None

    def channels(self, shape: Sequence[int]) -> int:
        """Return the number of output channels of a weight of that shape.

        >>> WeightRows(transposed=True, groups=2).channels([8, 3, 5, 5])
        6
        """
        return shape[1] * self.groups if self.transposed else shape[0]

    def rows(self, weight: Tensor) -> Tensor:
        """Return the rows of a weight, [C, in / groups, ...]; a view where there is one.

        >>> import torch
        >>> weight = torch.arange(8).reshape(4, 2, 1)  # of two groups, each of 2 inputs, 2 outputs
        >>> WeightRows(transposed=True, groups=2).rows(weight).flatten(1)
        tensor([[0, 2],
                [1, 3],
                [4, 6],
                [5, 7]])
        """
        return self._exchanged(weight)

    def weight(self, rows: Tensor) -> Tensor:
        """Return the weight that rows are of: what `rows` does, undone."""
        return self._exchanged(rows)

    def _exchanged(self, given: Tensor) -> Tensor:
        """Exchange the axes of inputs and outputs within each group; twice is not at all."""
        if not self.transposed:
            return given
        if self.groups == 1:
            return given.transpose(0, 1)
        apart = given.unflatten(0, (self.groups, -1))
        return apart.transpose(1, 2).flatten(0, 1)

"""One tensor on its grid: from real values to the integers that are stored, and back.

Two scales go by that name. The step s is the distance of neighbouring levels: training learns it,
and `qtool.numerics.grid` rounds by it. The scale of the codes is what a stored integer is
multiplied by: s / 2 on mid_rise, whose codes 2q - 1 are two apart, and s elsewhere. Here `scale` is
always that of the codes, as files hold it, and `step` is s; halving and doubling lose nothing.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from qtool.numerics.grid import IntegerGrid, quantize
from qtool.numerics.roundings import Rounding, half_to_even


@dataclass(frozen=True, eq=False)
class OnGrid:
    """A tensor's grid, and what one of its integers is worth.

    Attributes:
        grid: the integers allowed.
        scale: float32, of the codes: [] per tensor, or shaped to broadcast over the tensor.
        zero_point: the code that represents 0.0, an integer, [] where it is a tensor; 0 but on the
            asymmetric grid.
        rounding: which integer a value becomes.

    Examples:
        >>> import torch
        >>> images = OnGrid(IntegerGrid(8, "asymmetric"), torch.tensor(0.5), zero_point=100)
        >>> images.codes(torch.tensor([-50.0, 0.0, 1.0, 99.0]))
        tensor([  0., 100., 102., 255.])
        >>> images.values(torch.tensor([0.0, 100.0, 102.0, 255.0]))
        tensor([-50.0000,   0.0000,   1.0000,  77.5000])
        >>> images.reach
        155.0
    """

    grid: IntegerGrid
    scale: Tensor
    zero_point: Tensor | int = 0
    rounding: Rounding = half_to_even

    @classmethod
    def by_step(
        cls,
        grid: IntegerGrid,
        step: Tensor,
        zero_point: Tensor | int = 0,
        rounding: Rounding = half_to_even,
    ) -> Self:
        """Return the tensor whose neighbouring levels are `step` apart."""
        return cls(grid, grid.code_scale(step), zero_point, rounding)

    @property
    def step(self) -> Tensor:
        """Return s, the distance of neighbouring levels, shaped as the scale."""
        return self.scale * self.grid.code_step

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes of real values, integers in x's dtype and shape."""
        q = quantize(x, self.step, self.zero_point, self.grid, self.rounding)
        return 2 * q - 1 if self.grid.kind == "mid_rise" else q

    def values(self, codes: Tensor) -> Tensor:
        """Return what codes are worth, x_hat = (code - z) * scale, same shape."""
        return (codes - self.zero_point) * self.scale

    @property
    def reach(self) -> float:
        """Return the largest distance of a code from the zero point."""
        zero = float(self.zero_point)
        return max(abs(self.grid.code_min - zero), abs(self.grid.code_max - zero))

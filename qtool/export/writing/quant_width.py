"""The bits, signs and zero points by which QONNX's Quant knows a grid."""

from dataclasses import dataclass

import numpy as np

from qtool.export.targets.target import Array
from qtool.integer.layers import LayerSpec


@dataclass(frozen=True)
class Width:
    """What a Quant is told of a grid.

    Attributes:
        bits: its width.
        signed: whether it reaches below zero without the zero point.
        narrow: whether a signed one is symmetric.
        zero_point: that is added before values are rounded.
    """

    bits: int
    signed: bool
    narrow: bool = False
    zero_point: int = 0

    @classmethod
    def holding(cls, low: int, high: int) -> "Width":
        """Return the narrowest that holds the integers from low, at most 0, to high."""
        for bits in range(2, 9):
            half = 1 << (bits - 1)
            if high == half - 1 and low in (-half, 1 - half):
                return cls(bits, signed=True, narrow=low != -half)
        return cls(max(1, (high - low).bit_length()), signed=False, zero_point=-low)

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest integer, the zero point subtracted."""
        half = 1 << (self.bits - 1)
        if self.signed:
            return (1 - half if self.narrow else -half), half - 1
        return -self.zero_point, (1 << self.bits) - 1 - self.zero_point

    @property
    def datatype(self) -> str:
        """What QONNX calls real values of such a grid."""
        plain = not self.zero_point and (self.bits > 1 or not self.signed)
        return f"SCALEDINT<{self.bits}>" if plain else "FLOAT32"


ONE_BIT = Width(1, signed=True)  # {-1, +1}: BipolarQuant


def width_of(steps: Array, spec: LayerSpec | None) -> Width:
    """Return what holds the codes of a weight: its grid, or, of a join's, the narrowest."""
    grid = None if spec is None else spec.weight
    if grid is None or (grid.bits == 1 and grid.signed):  # a channel of zeros among {-1, +1}
        largest = int(np.abs(steps).max(initial=1))
        return Width(largest.bit_length() + 1, signed=True, narrow=True)
    if grid.kind == "mid_rise":  # odd codes
        return Width(grid.bits + 1, signed=True, narrow=True)
    return Width(grid.bits, signed=grid.signed, narrow=grid.qmin == -grid.qmax)

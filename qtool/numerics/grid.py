"""The integer grid that a quantized tensor lives on.

Everything is counted in steps u = x / s + o. The offset o is 1/2 on the mid_rise grid and 0 on
the others, so that levels always lie at integers and rounding thresholds at half-integers.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from qtool.numerics.roundings import Rounding, half_to_even
from qtool.numerics.steps import Bound, widen

Kind = Literal["narrow", "full", "mid_rise", "unsigned", "asymmetric", "ternary"]


@dataclass(frozen=True)
class IntegerGrid:
    """The integers a tensor may take, `qmin..qmax`, before the zero point is subtracted.

    narrow      -(2^(b-1) - 1) .. 2^(b-1) - 1   symmetric about zero
    full        -2^(b-1)       .. 2^(b-1) - 1
    mid_rise    1 - 2^(b-1)    .. 2^(b-1)       levels at (q - 1/2) s: no zero, 2^b of them
    unsigned    0              .. 2^b - 1       zero point 0; {0, 1} at 1 bit
    asymmetric  0              .. 2^b - 1       with a zero point
    ternary     -1             .. 1             2 bits; the same as narrow there

    Raises:
        ValueError: If `bits` is outside 1..8, or the grid has no such width.

    Examples:
        >>> IntegerGrid(4, "narrow").qmin, IntegerGrid(4, "narrow").qmax
        (-7, 7)
        >>> grid = IntegerGrid(2, "mid_rise")  # levels at (q - 1/2) s, stored as 2q - 1
        >>> grid.qmin, grid.qmax, grid.code_min, grid.code_max
        (-1, 2, -3, 3)
    """

    bits: int
    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown grid {self.kind!r}; choose one of {get_args(Kind)}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1..8, got {self.bits}")
        if self.bits == 1 and self.kind not in ("mid_rise", "unsigned"):
            raise ValueError("a grid of 1 bit is mid_rise or unsigned")
        if self.kind == "ternary" and self.bits != 2:
            raise ValueError("ternary takes 2 bits")
        if self.bits == 8 and self.kind == "mid_rise":
            raise ValueError("mid_rise takes 1..7 bits: its codes 2q - 1 must fit into int8")

    @property
    def qmin(self) -> int:
        """Return the smallest integer of the grid."""
        if not self.signed:
            return 0
        half = 2 ** (self.bits - 1)
        return {"narrow": 1 - half, "full": -half, "mid_rise": 1 - half, "ternary": -1}[self.kind]

    @property
    def qmax(self) -> int:
        """Return the largest integer of the grid."""
        if not self.signed:  # first, as activations ask for it in every pass
            return 2**self.bits - 1
        half = 2 ** (self.bits - 1)
        return {"narrow": half - 1, "full": half - 1, "mid_rise": half, "ternary": 1}[self.kind]

    @property
    def offset(self) -> float:
        """Return o of u = x / s + o."""
        return 0.5 if self.kind == "mid_rise" else 0.0

    @property
    def signed(self) -> bool:
        """Tell whether the grid reaches below zero without the help of a zero point."""
        return self.kind not in ("unsigned", "asymmetric")

    @property
    def code_min(self) -> int:
        """Return the smallest stored code: qmin, on mid_rise the odd integer 2 qmin - 1."""
        return 2 * self.qmin - 1 if self.kind == "mid_rise" else self.qmin

    @property
    def code_max(self) -> int:
        """Return the largest stored code: qmax, on mid_rise the odd integer 2 qmax - 1."""
        return 2 * self.qmax - 1 if self.kind == "mid_rise" else self.qmax

    @property
    def code_step(self) -> int:
        """Return the distance of neighbouring codes: 2 on mid_rise, else 1."""
        return 2 if self.kind == "mid_rise" else 1

    @property
    def finn_datatype(self) -> str:
        """Return the name that QONNX and FINN use for the stored codes."""
        if self.kind == "mid_rise":
            return "BIPOLAR" if self.bits == 1 else f"INT{self.bits + 1}"
        if self.bits == 1:
            return "BINARY"
        if self.kind == "ternary":
            return "TERNARY"
        return f"{'INT' if self.signed else 'UINT'}{self.bits}"

    def bound_to_scale(self, bound: Tensor) -> Tensor:
        """Return the scale that puts the outermost level at `bound` > 0.

        s = m / (high - 1/2) on mid_rise (2m / (2^b - 1), arXiv:2405.05171), m / high elsewhere.
        """
        return bound / (self.qmax - self.offset)

    def code_scale(self, scale: Tensor) -> Tensor:
        """Return the scale of the stored codes: s / 2 on mid_rise, else s; nothing is lost."""
        return scale / 2 if self.kind == "mid_rise" else scale

    def contains(self, codes: Tensor) -> bool:
        """Tell whether every stored code is one of the grid's."""
        codes = codes.to(torch.int16)
        inside = (codes >= self.code_min) & (codes <= self.code_max)
        return bool((inside & ((codes - self.code_min) % self.code_step == 0)).all())


def round_to_steps(  # noqa: PLR0917  the formula's own symbols, in its order
    x: Tensor, scale: Tensor, low: Bound, high: Bound, offset: float, rounding: Rounding
) -> Tensor:
    """Return clamp(round(x / s + o), low, high), a new tensor of x's shape, at least float32.

    There is no other rounding in qtool: training, codes, files and compiled kernels call this one.

    Examples:
        >>> x, scale = torch.tensor([-9.0, 0.7, 1.25, 1.75]), torch.tensor(0.5)
        >>> round_to_steps(x, scale, -7, 7, 0.0, half_to_even)  # 2.5 steps and 3.5 are ties
        tensor([-7.,  1.,  2.,  4.])
    """
    u = torch.div(widen(x), scale)
    if offset:
        u.add_(offset)
    # both bounds are numbers or both are tensors, which their union cannot say
    return rounding(u).clamp_(low, high)  # pyright: ignore[reportCallIssue, reportArgumentType]


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    grid: IntegerGrid,
    rounding: Rounding = half_to_even,
) -> Tensor:
    """Return q = clamp(round(x / s + o) + z, qmin, qmax), as ONNX QuantizeLinear does.

    Rounds before z is added: for ties the other order differs when z is odd.

    Args:
        x: real values, any shape.
        scale: float step size; [] per tensor, or shaped to broadcast over x per channel.
        zero_point: the integer that represents 0.0; 0 on every grid but asymmetric.
        grid: the integers allowed.
        rounding: one of ROUNDINGS; ties go to even, unless said otherwise.

    Examples:
        >>> x, scale = torch.tensor([-9.0, 0.7, 1.25, 1.75]), torch.tensor(0.5)
        >>> quantize(x, scale, 0, IntegerGrid(4, "narrow"))  # 2.5 steps and 3.5 are ties
        tensor([-7.,  1.,  2.,  4.])
    """
    low, high = grid.qmin - zero_point, grid.qmax - zero_point
    q = round_to_steps(x, scale, low, high, grid.offset, rounding) + zero_point
    return q.to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else q


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | int, grid: IntegerGrid) -> Tensor:
    """Return x_hat = (q - z - o) * s, as ONNX DequantizeLinear does where o is 0.

    Examples:
        >>> q, scale = torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor(0.5)
        >>> dequantize(q, scale, 0, IntegerGrid(2, "mid_rise"))
        tensor([-0.7500, -0.2500,  0.2500,  0.7500])
    """
    return (q - zero_point - grid.offset) * scale


def to_codes(q: Tensor, scale: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """Return a weight's stored codes (int8) and their scale: q and s; 2q - 1 and s / 2 on mid_rise.

    On the grids of weights x_hat = code * code_scale, exactly: halving a float loses nothing.

    Examples:
        >>> q, scale = torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor(0.5)
        >>> to_codes(q, scale, IntegerGrid(2, "mid_rise"))
        (tensor([-3, -1,  1,  3], dtype=torch.int8), tensor(0.2500))
    """
    codes = 2 * q - 1 if grid.kind == "mid_rise" else q
    return codes.to(torch.int8), grid.code_scale(scale)

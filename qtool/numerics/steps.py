"""What all gradient estimators share: their bounds, and where a value lies in its bin.

Steps u = x / s + o put levels at integers and rounding thresholds at half-integers.
"""

import math
from ctypes import c_float

import torch
from torch import Tensor

Bound = Tensor | float
WIDE = (torch.float32, torch.float64)


def widen(u: Tensor) -> Tensor:
    """Return u in float32, or float64 if it has it: bfloat16 blurs the place inside a bin."""
    if u.dtype in WIDE:
        return u
    return u.to(torch.promote_types(u.dtype, torch.float32))


def to_float32(number: float) -> float:
    """Return the float32 next to a number; inf where that is beyond all of them.

    What float32 makes of a sum, product or quotient of two numbers, which float64 rounds first, is
    this of it: with 53 bits for 24 the second rounding never differs.
    """
    return c_float(number).value


def from_threshold(u: Tensor) -> Tensor:
    """Return t = u - nearest half-integer, in [-1/2, 1/2], at least float32."""
    u = widen(u)
    return u - torch.floor(u) - 0.5


def from_level(u: Tensor) -> Tensor:
    """Return f = u - nearest integer, in [-1/2, 1/2], ties as the forward breaks them."""
    u = widen(u)
    return u - torch.round(u)


def tanh_of(number: Bound) -> Bound:
    """Return tanh of a number, which is a tensor [] where a schedule moves it in a trace."""
    return torch.tanh(number) if isinstance(number, Tensor) else math.tanh(number)


def artanh_of(number: Bound) -> Bound:
    """Return artanh of a number, which is a tensor [] where it is learned."""
    return torch.atanh(number) if isinstance(number, Tensor) else math.atanh(number)


def sech_squared(x: Tensor) -> Tensor:
    """Return 1 / cosh(x)^2, accurate in the tails, where cosh would overflow."""
    decay = torch.exp(-2 * x.abs())
    return 4 * decay / (1 + decay) ** 2


def inside(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Return `grad` where low <= u <= high, else 0, in u's dtype."""
    return torch.where((low <= u) & (u <= high), grad, 0.0).to(u.dtype)

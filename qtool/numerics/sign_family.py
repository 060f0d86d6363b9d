"""The sign family of gradient estimators: stand-ins for the derivative of sign, at 1 bit.

For grids of two levels only. With v = 2u - 1 the threshold lies at v = 0 and the levels at -1
and +1, and h is the published derivative with respect to v: g_u = g * h(v), without the factor 2
of the inner derivative. The bounds are not used.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from qtool.numerics.schedules import MOVES
from qtool.numerics.steps import Bound, sech_squared, widen
from qtool.registry import Registry

SIGN_FAMILY: Registry[Callable[..., Tensor]] = Registry("estimator")

RECTIFIED_CORE = 0.1  # |v| below which ReSTE holds its derivative constant
RECTIFIED_REACH = 1.5  # |v| beyond which ReSTE's derivative is 0


def _distance(u: Tensor) -> Tensor:
    """Return |v| = |2u - 1|, at least float32."""
    return (2 * widen(u) - 1).abs()


@SIGN_FAMILY.add
def hard_tanh(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient between the two levels.

        g_u = g * [|v| <= 1], v = 2u - 1

    Reference: Courbariaux et al., 2016, arXiv:1602.02830.
    """
    del low, high
    return grad * (_distance(u) <= 1)


@SIGN_FAMILY.add
def tanh(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    sharpness: Annotated[float, Field(gt=0), MOVES] = 2.0,
) -> Tensor:
    """Weigh the gradient with the derivative of a hyperbolic tangent.

        g_u = g * k sech^2(k v), v = 2u - 1
        k = sharpness

    Reference: the 1-bit case of Schoenbauer et al., 2024, arXiv:2405.05171. IR-Net's, Qin et al.,
    2019, arXiv:1909.10788, is the same where k >= 1, and moves k during training.
    """
    del low, high
    return (grad * (sharpness * sech_squared(sharpness * _distance(u)))).to(u.dtype)


@SIGN_FAMILY.add
def sigmoid(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Weigh the gradient with the derivative of the logistic function.

        g_u = g * sigma(v) (1 - sigma(v)), v = 2u - 1
        sigma(v) = 1 / (1 + exp(-v))

    Reference: none; the plain logistic surrogate.
    """
    del low, high
    # the same as sech^2(v / 2) / 4, which keeps its digits where 1 - sigma(v) cancels
    return (grad * (sech_squared(_distance(u) / 2) / 4)).to(u.dtype)


@SIGN_FAMILY.add
def approx_sign(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Weigh the gradient with a triangle over the threshold.

        g_u = g * (2 - 2 |v|) * [|v| <= 1], v = 2u - 1

    Reference: ApproxSign of Bi-Real Net, Liu et al., 2018, arXiv:1808.00278.
    """
    del low, high
    return (grad * (2 - 2 * _distance(u)).clamp(min=0)).to(u.dtype)


@SIGN_FAMILY.add
def swish_sign(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    beta: Annotated[float, Field(gt=0)] = 5.0,
) -> Tensor:
    """Weigh the gradient with the derivative of SignSwish, which is negative far out.

        g_u = g * beta (2 - beta v tanh(beta v / 2)) / (1 + cosh(beta v)), v = 2u - 1

    Reference: BNN+, Darabi et al., 2018, arXiv:1812.11800.
    """
    del low, high
    x = (beta * _distance(u)).clamp(max=1e4)  # exp(-1e4) is 0 in every type; inf * 0 is not
    decay = torch.exp(-x)
    return (grad * (beta * (2 - x * torch.tanh(x / 2)) * 2 * decay / (1 + decay) ** 2)).to(u.dtype)


@SIGN_FAMILY.add
def rectified(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    power: Annotated[float, Field(ge=1), MOVES] = 3.0,
) -> Tensor:
    """Weigh the gradient with the derivative of a root, cut off near and far.

        g_u = g * (|v|^((1 - o) / o) / o for 0.1 < |v| <= 1.5, 0.1^((1 - o) / o) below, 0 beyond)
        v = 2u - 1, o = power

    The paper moves o from 1 to 3 along 1 - cos during training.

    Reference: ReSTE, Wu et al., 2023, arXiv:2308.06689.
    """
    del low, high
    v = _distance(u)
    exponent = (1 - power) / power
    root = v.clamp(RECTIFIED_CORE, RECTIFIED_REACH) ** exponent / power
    slope = torch.where(v <= RECTIFIED_CORE, RECTIFIED_CORE**exponent, root)
    return (grad * slope * (v <= RECTIFIED_REACH)).to(u.dtype)

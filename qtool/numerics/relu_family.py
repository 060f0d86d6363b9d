"""The ReLU family of gradient estimators: derivatives of what a quantized ReLU resembles.

Their papers quantize activations to 0..high; here `low` stands where they write 0, so that they
equal the papers' at low = 0 and stay harmless on signed grids. All are 0 at and below the lower
bound, and none looks at the place inside a bin, so that they also serve rounding up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qtool.numerics.steps import Bound, widen
from qtool.registry import Registry

RELU_FAMILY: Registry[Callable[..., Tensor]] = Registry("estimator")


@RELU_FAMILY.add
def relu(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient above the lower bound.

        g_u = g * [u > low]

    Reference: "vanilla ReLU STE" of Yin et al., 2019, arXiv:1903.05662, at low = 0.
    """
    del high
    return grad * (u > low)


@RELU_FAMILY.add
def clipped_relu(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient inside the grid, without its lower bound.

        g_u = g * [low < u <= high]

    Reference: "clipped ReLU STE" of Yin et al., 2019, arXiv:1903.05662, at low = 0.
    """
    return grad * ((low < u) & (u <= high))


@RELU_FAMILY.add
def reverse_exponential(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Let the gradient decay from the lower bound on.

        g_u = g * exp(-(u - low) / (high - low)) * [u > low]

    Reference: Long et al., 2020, arXiv:2011.11256, at low = 0.
    """
    above = (widen(u) - low).clamp(min=0)
    return (grad * torch.exp(-above / (high - low)) * (u > low)).to(u.dtype)


@RELU_FAMILY.add
def log_tailed_relu(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient inside the grid and let it fade above.

        g_u = g * [u > low] / (1 + max(u - high, 0))

    Reference: Cai et al., 2017, arXiv:1702.00953, and Long et al., 2020, arXiv:2011.11256, at
    low = 0.
    """
    return (grad * (u > low) / (1 + (widen(u) - high).clamp(min=0))).to(u.dtype)

"""The staircase of rounding, made soft: one hyperbolic tangent in each bin."""

import torch
from torch import Tensor

from qtool.numerics.steps import Bound, from_threshold


def soft_staircase(u: Tensor, low: Bound, high: Bound, *, alpha: Tensor) -> Tensor:
    """Return what soft quantization makes of steps, of u's shape; levels stay where they are.

        soft = m + tanh(k t) / (2 (1 - alpha)),  k = ln(2 / alpha - 1), m = u - t

    with t the distance of clamp(u, low, high) from the nearest threshold m.

    Reference: DSQ, Gong et al., 2019, arXiv:1908.05033.
    """
    # two clamps: torch takes no number beside a tensor
    clipped = u.clamp(min=low).clamp(max=high)
    t = from_threshold(clipped)
    return clipped - t + torch.tanh(torch.log(2 / alpha - 1) * t) / (2 * (1 - alpha))

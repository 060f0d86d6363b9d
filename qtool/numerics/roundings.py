"""Roundings: from steps u = x / scale + offset to the steps that the forward pass uses.

Each takes u and may overwrite it; saturation comes afterwards. `ceil` is what is deployed, too;
`stochastic_rounding` and `additive_noise` are for training alone, and give way to `half_to_even`
in evaluation and in the integer model. To add one, write a function here and decorate it: its
name is its name in recipes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qtool.registry import Registry

Rounding = Callable[[Tensor], Tensor]
ROUNDINGS: Registry[Rounding] = Registry("rounding")


@ROUNDINGS.add
def half_to_even(u: Tensor) -> Tensor:
    """Take the nearest integer, and the even one of two that are equally near.

    q = round(u)
    """
    return u.round_()


@ROUNDINGS.add
def ceil(u: Tensor) -> Tensor:
    """Take the next integer above: thresholds lie at the integers.

        q = ceil(u)

    Reference: the quantized ReLU of Yin et al., 2019, arXiv:1903.05662, and of Long et al., 2020,
    arXiv:2011.11256.
    """
    return u.ceil_()


@ROUNDINGS.add
def stochastic_rounding(u: Tensor) -> Tensor:
    """Take one of the two integers around u, the nearer one more often: right on average.

        q = floor(u) + [r < u - floor(u)], r ~ U[0, 1)

    Reference: Gupta et al., 2015, arXiv:1502.02551.
    """
    below = u.floor()  # in floats u + r may reach the integer above, even where u is whole
    return below.add_(torch.rand_like(u) < u.sub_(below))


@ROUNDINGS.add
def additive_noise(u: Tensor) -> Tensor:
    """Add noise of the size of the rounding error instead of rounding, with its exact gradient.

        q = u + r, r ~ U[-1/2, 1/2)

    Reference: Baskin et al., 2018, arXiv:1804.10969 (UNIQ); Defossez et al., 2021,
    arXiv:2104.09987 (DiffQ).
    """
    return u.add_(torch.rand_like(u)).sub_(0.5)


TRAINING_ONLY = frozenset({"stochastic_rounding", "additive_noise"})


def deployed(name: str) -> str:
    """Return the rounding that evaluation and the integer model use."""
    return "half_to_even" if name in TRAINING_ONLY else name

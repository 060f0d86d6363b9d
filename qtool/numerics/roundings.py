"""Roundings: from steps u = x / scale + offset to the steps that the forward pass uses.

Each takes u and may overwrite it; saturation comes afterwards. `ceil` is what is deployed, too;
those that are for training alone give way to `half_to_even` in evaluation and in the integer
model. To add one, write a function here and decorate it: its name is its name in recipes.

Examples:
    >>> u = torch.tensor([-0.5, 0.2, 0.5, 1.5])
    >>> ROUNDINGS["half_to_even"](u.clone())
    tensor([-0., 0., 0., 2.])
    >>> ROUNDINGS["ceil"](u.clone())
    tensor([-0., 1., 1., 2.])
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qtool.registry import Registry

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class RoundingFacts:
    """What is true of a rounding beside the steps that it takes."""

    training_only: bool = False
    """It is random, and not what is deployed."""


ROUNDINGS = Registry[Rounding]("rounding").with_facts(RoundingFacts)


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


@ROUNDINGS.add(training_only=True)
def stochastic_rounding(u: Tensor) -> Tensor:
    """Take one of the two integers around u, the nearer one more often: right on average.

        q = floor(u) + [r < u - floor(u)], r ~ U[0, 1)

    Reference: Gupta et al., 2015, arXiv:1502.02551.
    """
    below = u.floor()  # in floats u + r may reach the integer above, even where u is whole
    return below.add_(torch.rand_like(u) < u.sub_(below))


@ROUNDINGS.add(training_only=True)
def additive_noise(u: Tensor) -> Tensor:
    """Add noise of the size of the rounding error instead of rounding, with its exact gradient.

        q = u + r, r ~ U[-1/2, 1/2)

    Reference: Baskin et al., 2018, arXiv:1804.10969 (UNIQ); Defossez et al., 2021,
    arXiv:2104.09987 (DiffQ).
    """
    return u.add_(torch.rand_like(u)).sub_(0.5)


TRAINING_ONLY = frozenset(n for n in ROUNDINGS.names() if ROUNDINGS.facts(n).training_only)


def deployed(name: str) -> str:
    """Return the rounding that evaluation and the integer model use."""
    return "half_to_even" if ROUNDINGS.facts(name).training_only else name

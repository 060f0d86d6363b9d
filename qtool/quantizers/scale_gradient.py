"""How gradients come back through the rounding, and what a learned scale learns by.

A scale gets the chain rule of s * Q(x / s),

    ds = (<g, x_hat> - <g_x, x>) / s,

which is LSQ's where g_x is straight_through's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qtool.numerics.estimators import Estimator
from qtool.numerics.steps import to_float32


@dataclass(frozen=True)
class Backward:
    """How gradients come back through the rounding.

    Attributes:
        estimator: gives the gradient with respect to u.
        scale_rule: of a learned scale: lsq and chain_rule as in the recipe; clip learns the clip
            a = s (high - o), da = sum of g over saturated values, whose step is taken by s.
        factor: on the gradient of the scale, and of the offset.
        decay: of the clip, added to the scale's gradient.
        compiles: take compiled kernels where there are any.
        top: what a clip that the rounding does ends at, and the steps from 0 to the grid's own end;
            None where the scale is not learned, or nothing is clipped. Where the top lies within
            the grid, values above it become the top whatever the scale is, and teach it nothing.
        overwritten: the model computes in place with what was rounded.
        unkept: no one else keeps what was rounded, so that rounding again saves its memory.
    """

    estimator: Estimator
    scale_rule: Literal["lsq", "chain_rule", "clip"]
    factor: float
    decay: float = 0.0
    compiles: bool = False
    top: tuple[float, float] | None = None
    overwritten: bool = False
    unkept: bool = False

    def reaches(self, scale: Tensor) -> Tensor:
        """Tell whether the top lies within the grid of a scale, bool []."""
        assert self.top is not None
        top, steps = self.top
        return scale * steps >= top

    def number_reaches(self, scale: float) -> bool:
        """Tell what `reaches` does of a scale that is a number."""
        assert self.top is not None
        top, steps = self.top
        return to_float32(scale * steps) >= to_float32(top)


class Sums:
    """What a scale, and an offset, learn by, added up over parts of the tensors.

    Attributes:
        products: <g, x_hat> - <inner, x>, for clip <g - inner, x_hat>, shaped as the scale, where
            inner is the gradient of x that the scale's rule takes; None before the first part.
        saturated: the sum of g - inner, [], where an offset is learned.
    """

    def __init__(self, how: Backward, scale: Tensor, *, shifted: bool) -> None:
        self.clips, self.shape, self.shifted = how.scale_rule == "clip", scale.shape, shifted
        self.products: Tensor | None = None
        self.saturated: Tensor | float = 0.0

    def add(
        self, grad: Tensor, inner: Tensor, x: Tensor, x_hat: Tensor, out: Tensor | None = None
    ) -> None:
        """Add a part; what is written to `out`, of the shape of x, is lost."""
        if grad.ndim == 1 and not self.shape:
            own = torch.dot(inner, x_hat if self.clips else x)  # first: a cache still holds them
            found = torch.dot(grad, x_hat).sub_(own)
        elif self.clips:
            found = torch.sub(grad, inner, out=out).mul_(x_hat).sum_to_size(self.shape)
        else:
            products = torch.mul(grad, x_hat, out=out).addcmul_(inner, x, value=-1)
            found = products.sum_to_size(self.shape)
        self.products = found if self.products is None else self.products.add_(found)
        if self.shifted:
            self.saturated = self.saturated + grad.sum() - inner.sum()

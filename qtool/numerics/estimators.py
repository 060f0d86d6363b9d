"""Gradient estimators: what the backward pass uses in place of d round(u) / du.

Each takes the incoming gradient, the unrounded steps u = x / scale + offset and the bounds
low <= u <= high in the same unit, and returns the gradient with respect to u, of u's shape.
The bounds are numbers, or tensors that broadcast over u. To add one, write a function here and
decorate it: its name is its name in recipes, its keyword-only arguments are its parameters. What
else is true of it stands in the decorator: see `EstimatorFacts`.

Those that differ only in their shape inside a bin (hyperbolic_tangent and all below it but
magnitude_aware and trust) stop the gradient outside low <= u <= high, as straight_through does,
whatever their papers do there: a comparison then shows the shape and nothing else. In their
formulas t = u - nearest threshold and f = u - nearest level, both in [-1/2, 1/2].

Examples:
    >>> grad, u = torch.ones(4), torch.tensor([-1.0, 0.5, 1.0, 4.0])
    >>> ESTIMATORS.build("straight_through")(grad, u, 0.0, 3.0)
    tensor([0., 1., 1., 0.])
    >>> ESTIMATORS.build("sinusoidal", amplitude=0.5)(grad, u, 0.0, 3.0)  # most at a threshold
    tensor([0.0000, 1.5000, 0.5000, 0.0000])
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from qtool.numerics.relu_family import RELU_FAMILY
from qtool.numerics.schedules import MOVES
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.numerics.steps import (
    Bound,
    artanh_of,
    from_level,
    from_threshold,
    inside,
    sech_squared,
    tanh_of,
    widen,
)
from qtool.registry import Registry

Estimator = Callable[[Tensor, Tensor, Bound, Bound], Tensor]


@dataclass(frozen=True, kw_only=True)
class EstimatorFacts:
    """What is true of an estimator beside its gradient."""

    family: Literal["any grid", "relu", "sign"] = "any grid"
    """What it stands in for: a rounding to any grid, a quantized ReLU, or a sign, which takes a
    grid of two levels."""

    serves_ceil: bool = False
    """It serves rounding up too, whose thresholds lie at integers."""

    learns: bool = False
    """Its parameter `alpha` is where training begins: each quantizer learns one of its own."""


ESTIMATORS = Registry[Callable[..., Tensor]]("estimator").with_facts(EstimatorFacts)


@ESTIMATORS.add(serves_ceil=True)
def straight_through(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient inside the grid and stop it outside.

        g_u = g * [low <= u <= high]

    Reference: Bengio et al., 2013, arXiv:1308.3432. The piecewise linear estimator (PWL) of
    arXiv:2405.05171 is the same function.
    """
    return grad * ((low <= u) & (u <= high))


@ESTIMATORS.add(serves_ceil=True)
def identity(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass every gradient, also where the value saturates.

        g_u = g

    Reference: Hinton, 2012; "identity STE" of Yin et al., 2019, arXiv:1903.05662.
    """
    del u, low, high
    return grad


ESTIMATORS.include(RELU_FAMILY, family="relu", serves_ceil=True)


@ESTIMATORS.add
def hyperbolic_tangent(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    sharpness: Annotated[float, Field(gt=0), MOVES] = 2.1667,
) -> Tensor:
    """Let a hyperbolic tangent climb each step, and use its slope.

        g_u = g * k coth(k) sech^2(2 k t) * [low <= u <= high]
        k = sharpness, the argument of tanh at the edge of a bin

    Its mean over a bin is 1. DSQ writes the same function with 1 - tanh(k) as its parameter.

    Reference: HTGE of Schoenbauer et al., 2024, arXiv:2405.05171; DSQ, Gong et al., 2019,
    arXiv:1908.05033.
    """
    peak = sharpness / tanh_of(sharpness)
    slope = peak * sech_squared(2 * sharpness * from_threshold(u))
    return inside(grad * slope, u, low, high)


@ESTIMATORS.add
def stacked_sigmoid(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    sharpness: Annotated[float, Field(gt=0)] = 4.0,
) -> Tensor:
    """Let a logistic function climb each step, and use its slope.

        g_u = g * A sigma(A t) (1 - sigma(A t)) / (2 sigma(A / 2) - 1) * [low <= u <= high]
        A = sharpness, sigma(x) = 1 / (1 + exp(-x))

    It is hyperbolic_tangent with sharpness A / 4, under the name its users know.

    Reference: quantization as a sum of sigmoids, Yang et al., 2019, arXiv:1911.09464; here each
    bin has one sigmoid, scaled so that the levels are met.
    """
    return hyperbolic_tangent(grad, u, low, high, sharpness=sharpness / 4)


@ESTIMATORS.add
def sinusoidal(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    amplitude: Annotated[float, Field(gt=-1, lt=1), MOVES] = 0.5,
) -> Tensor:
    """Let the slope swing around 1, largest at the thresholds.

        g_u = g * (1 + a cos(2 pi t)) * [low <= u <= high]
        a = amplitude

    Reference: none; the smooth cyclical estimator with one harmonic.
    """
    slope = 1 + amplitude * torch.cos(2 * math.pi * from_threshold(u))
    return inside(grad * slope, u, low, high)


@ESTIMATORS.add
def triangular(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    height: Annotated[float, Field(ge=0, lt=1)] = 0.5,
) -> Tensor:
    """Let the slope fall in a straight line from each threshold to the next level.

        g_u = g * (1 + h - 4 h |t|) * [low <= u <= high]
        h = height

    Reference: none; ApproxSign of Liu et al., 2018, arXiv:1808.00278, repeated in every bin.
    """
    slope = 1 + height - 4 * height * from_threshold(u).abs()
    return inside(grad * slope, u, low, high)


@ESTIMATORS.add
def stable_qat(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    amplitude: Annotated[float, Field(ge=0, lt=1 / (math.sqrt(2) * math.pi))] = 0.21,
) -> Tensor:
    """Use the slope of a rotated Fourier series of the rounding staircase, cut to one term.

        g_u = g * (1 - S) / (1 + S) * [low <= u <= high]
        S = sqrt(2) pi A cos(pi f), A = amplitude

    At A = 0 it is straight_through.

    Reference: the Fourier-based surrogate of StableQAT, Chen et al., 2026, arXiv:2601.19320.
    """
    s = math.sqrt(2) * math.pi * amplitude * torch.cos(math.pi * from_level(u))
    return inside(grad * ((1 - s) / (1 + s)), u, low, high)


@ESTIMATORS.add
def position_based(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    slope: Annotated[float, Field(gt=0)] = 4.0,
    epsilon: Annotated[float, Field(ge=0)] = 0.01,
) -> Tensor:
    """Weigh the gradient with the distance to the nearest level, which draws weights onto the grid.

        g_u = g * (slope |f| + epsilon) * [low <= u <= high]

    The mean over a bin is slope / 4 + epsilon. The paper's forward is float; here it is rounded,
    as with every estimator.

    Reference: PSG, Kim et al., 2020, arXiv:2005.11035.
    """
    return inside(grad * (slope * from_level(u).abs() + epsilon), u, low, high)


@ESTIMATORS.add
def element_wise_gradient_scaling(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    delta: Annotated[float, Field(ge=0), MOVES] = 0.1,
) -> Tensor:
    """Scale the gradient up where its step leads towards the level, and down where away.

        g_u = g * (1 + delta sign(g) f) * [low <= u <= high]
        f = u - clamp(round(u), low, high)

    The paper's delta acts on values scaled to [0, 1]: it is delta * (levels - 1).

    Reference: EWGS, Lee et al., 2021, arXiv:2104.00903.
    """
    wide = widen(u)
    # two clamps: torch takes no number beside a tensor
    error = wide - torch.round(wide).clamp(min=low).clamp(max=high)
    # beyond the grid f has no limit, and delta * f might overflow before it is masked
    error = torch.where((low <= u) & (u <= high), error, 0.0)
    return inside(grad * (1 + delta * torch.sign(grad) * error), u, low, high)


@ESTIMATORS.add
def magnitude_aware(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient inside the grid and let it fade with the distance outside.

        g_u = g * min(1, c / d)
        c = (high - low) / 2, d = |u - (low + high) / 2|

    Reference: MAD, Sakr et al., 2022, arXiv:2206.06501.
    """
    c = (high - low) / 2
    d = (widen(u) - (low + high) / 2).abs()
    return (grad * torch.where(d > c, c * d.reciprocal(), 1.0)).to(u.dtype)


@ESTIMATORS.add(learns=True)
def soft_quantization(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2,
) -> Tensor:
    """Use the slope of a staircase whose softness is learned with the weights.

        g_u = g * k coth(k) sech^2(2 k t) * [low <= u <= high], k = artanh(1 - alpha)

    It is hyperbolic_tangent, but that every quantizer learns its alpha from this start, by the
    gradient of the soft staircase; near 0 the staircase is hard, near 1 straight.

    Reference: DSQ, Gong et al., 2019, arXiv:1908.05033.
    """
    return hyperbolic_tangent(grad, u, low, high, sharpness=artanh_of(1 - alpha))


@ESTIMATORS.add
def trust(
    grad: Tensor,
    u: Tensor,
    low: Bound,
    high: Bound,
    *,
    threshold: Annotated[float, Field(gt=0)] = 0.5,
) -> Tensor:
    """Pass the gradient where rounding moves the value by no more than a threshold.

        g_u = g * [|u - clamp(round(u), low, high)| <= T]
        T = threshold, in steps

    Half a step, the paper's choice, is what rounding moves a value by inside the grid: it stops the
    gradient further out than that, half a step later than straight_through. The paper's Hadamard
    transform of the tensors is no part of it.

    Reference: QuEST, Panferov et al., 2025, arXiv:2502.05003.
    """
    wide = widen(u)
    # two clamps: torch takes no number beside a tensor
    error = wide - torch.round(wide).clamp(min=low).clamp(max=high)
    return torch.where(error.abs() <= threshold, grad, 0.0).to(u.dtype)


ESTIMATORS.include(SIGN_FAMILY, family="sign")

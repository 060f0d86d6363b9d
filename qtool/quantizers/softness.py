"""What an estimator learns of its own shape, with the weights: alpha of soft_quantization (DSQ)."""

import torch
from torch import Tensor, nn

from qtool.numerics.estimators import ESTIMATORS, Bound
from qtool.numerics.scales import above_floor
from qtool.numerics.soft_staircase import soft_staircase
from qtool.settings.section import Choice

LEAST, MOST = 0.01, 0.99  # of alpha: at 0 the staircase is hard, at 1 it is a straight line


def softness_of(estimator: Choice | None) -> nn.Parameter | None:
    """Return what is learned, float32 [], at its start; None where the estimator learns nothing."""
    if estimator is None or not ESTIMATORS.facts(estimator.name).learns:
        return None
    start = ESTIMATORS.values(estimator.name, estimator.params)["alpha"]
    return nn.Parameter(torch.tensor(start))


def within(alpha: Tensor) -> Tensor:
    """Return alpha, kept from its ends; a gradient passes as if it were not."""
    kept = alpha.detach()
    return alpha + (kept.clamp(LEAST, MOST) - kept)


def teach(
    softness: Tensor,
    x_hat: Tensor,
    x: Tensor,
    scale: Tensor,
    *,
    bounds: tuple[Bound, Bound],
    offset: float,
    factor: float,
) -> Tensor:
    """Return x_hat, by which alpha gets the gradient of the soft staircase, and nothing else does.

        d alpha = factor * sum g s d/d alpha soft(u)

    The paper has no factor; that of a learned scale, 1 / sqrt(N high), keeps its steps small.
    """
    s = above_floor(scale)
    u = x.detach().to(s.dtype) / s + offset
    alpha = softness * factor + (softness * (1 - factor)).detach()
    soft = soft_staircase(u, *bounds, alpha=within(alpha)) * s
    return x_hat + (soft - soft.detach()).to(x_hat.dtype)

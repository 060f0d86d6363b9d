"""Alpha-blending under plain SGD is the straight-through estimator with a smaller learning rate.

The blended weight is (1 - alpha) w + alpha w_hat with the gradient through its first term. The
straight-through estimator passes the gradient of the same forward as it is, so that its learning
rate must be (1 - alpha) times as large. Liu and Mattina, 2019, arXiv:1903.01061, with the
estimator of Hinton, 2012.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.numerics.ranges import RANGES
from qtool.numerics.schedules import SCHEDULES

STEPS = 12
GRID = IntegerGrid(3, "narrow")
alpha = SCHEDULES.build("cubic", start=0.0, stop=1.0, window=[0.2, 0.8])
ALPHAS = [alpha(step / STEPS) for step in range(STEPS)]
identity = ESTIMATORS.build("identity")

Weights = list[Tensor]
MakeOptimizer = Callable[[Weights, float], torch.optim.Optimizer]


def sgd(weights: Weights, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=rate)


def adam(weights: Weights, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=rate)


def rounded(weight: Tensor, rule: str) -> Tensor:
    """Return w_hat, with the scales fitted again."""
    weight = weight.detach()
    scale = RANGES.build(rule)(weight, GRID).unsqueeze(1)
    return dequantize(quantize(weight, scale, 0, GRID), scale, 0, GRID)


def loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the loss of a network of two layers, on the same data every time."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (20,), generator=generator)
    return torch.nn.functional.cross_entropy(torch.tanh(x @ first.T) @ second.T, labels)


def initial() -> Weights:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).double() for shape in ((5, 6), (3, 5))]


def blended_run(make: MakeOptimizer, rate: float, rule: str) -> list[Weights]:
    """Return the weights after each step of alpha-blending."""
    weights = [weight.requires_grad_() for weight in initial()]
    optimizer = make(weights, rate)
    seen = []
    for a in ALPHAS:
        optimizer.zero_grad()
        loss(*[(1 - a) * w + a * rounded(w, rule) for w in weights]).backward()
        optimizer.step()
        seen.append([w.detach().clone() for w in weights])
    return seen


def straight_through_run(make: MakeOptimizer, rate: float, rule: str) -> list[Weights]:
    """Return the weights after each step on the same forward, its gradient passed as it is."""
    weights = [weight.requires_grad_() for weight in initial()]
    optimizer = make(weights, rate)
    seen = []
    for a in ALPHAS:
        forward = [((1 - a) * w.detach() + a * rounded(w, rule)).requires_grad_() for w in weights]
        gradients = torch.autograd.grad(loss(*forward), forward)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = identity(gradient, weight.detach(), GRID.qmin, GRID.qmax)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - a)
        optimizer.step()
        seen.append([w.detach().clone() for w in weights])
    return seen


def largest_difference(one: Weights, other: Weights) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_the_schedule_begins_without_rounding_and_ends_with_nothing_else() -> None:
    assert ALPHAS[0] == ALPHAS[1] == ALPHAS[2] == 0.0
    assert ALPHAS[-1] == ALPHAS[-2] == 1.0
    assert len(set(ALPHAS)) == 9  # seven steps in between


@pytest.mark.parametrize("rule", ["absmax", "ppq"])
def test_under_sgd_blending_is_straight_through_with_one_minus_alpha_times_the_rate(
    rule: str,
) -> None:
    pairs = zip(blended_run(sgd, 0.5, rule), straight_through_run(sgd, 0.5, rule), strict=True)
    assert all(largest_difference(*pair) <= 1e-12 for pair in pairs)


@pytest.mark.parametrize("rule", ["absmax", "ppq"])
def test_the_weights_move_while_they_are_blended_and_rest_once_alpha_is_one(rule: str) -> None:
    seen = blended_run(sgd, 0.5, rule)
    moves = [largest_difference(*pair) for pair in pairwise(seen)]
    assert all(move > 1e-4 for move in moves[:8])
    assert moves[-1] == moves[-2] == 0.0


def test_under_adam_they_are_not_the_same() -> None:
    """Adam divides by its memory of gradient sizes, in which 1 - alpha fades only slowly."""
    blended, straight = (run(adam, 0.05, "absmax") for run in (blended_run, straight_through_run))
    assert largest_difference(blended[2], straight[2]) <= 1e-12  # alpha has been 0 until here
    assert largest_difference(blended[-1], straight[-1]) > 1e-2

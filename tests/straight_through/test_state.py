"""What becomes of weights and of optimizers, on one layer whose numbers the paper gives."""

import pytest
import torch
from torch import nn

import qtool
from qtool.quantizers.layers import QuantLinear
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.state import carry_over, slope_at
from qtool.straight_through.weights import WeightMap
from qtool.training.optimizers import OPTIMIZERS, parameter_groups

SHARP = {"name": "hyperbolic_tangent", "sharpness": 6.5 / 3}
SIDE = {"bits": 2, "grid": "mid_rise", "range": {"name": "fixed", "scale": 2 / 3}}
SLOPES = {0.05: 2.00495686, 0.1: 1.49737909, 0.3: 0.17302031, -0.25: 0.31970726, 1.5: 0.0}
MAPPED = {0.05: 0.01058122, 0.1: 0.02355791, 0.3: 0.22463667, -0.25: -0.12669823, 1.5: 1.5}
WEIGHT_MAP = WeightMap(WeightQuantization.model_validate(SIDE | {"estimator": SHARP}))
ALPHA = 0.454376


def begun(optimizer, **weights):
    """A layer with the weights above, its optimizer, and gradients that are all 1."""
    net = nn.Sequential(nn.Linear(len(SLOPES), 1, bias=True))
    model = qtool.prepare(net, {"weights": SIDE | weights})
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([list(SLOPES)]))
    return model, OPTIMIZERS.build(optimizer)(parameter_groups(model), 1e-9)


def converted(optimizer, **weights):
    old, new = begun(optimizer, estimator=SHARP), begun(optimizer, **weights)
    for parameter in old[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    old[1].step()
    return new, carry_over(old, new, {"0": WEIGHT_MAP}, adaptive=optimizer == "adamw")


def test_the_derivative_at_a_weight_is_the_papers():
    layer = begun("sgd", estimator=SHARP)[0][0]
    assert isinstance(layer, QuantLinear)
    found = slope_at(layer.weight.detach(), layer.weight_quantizer)
    assert found[0].tolist() == pytest.approx(list(SLOPES.values()), rel=3e-4)


def test_momentum_is_divided_by_the_derivative_and_weights_are_mapped():
    (model, optimizer), rows = converted("sgd", learning_rate_scale=ALPHA)
    assert model[0].weight[0].tolist() == pytest.approx(list(MAPPED.values()), abs=2e-5)
    found = optimizer.state[model[0].weight]["momentum_buffer"][0]
    # where no gradient passes M is the identity: the rate times alpha is made up for
    expected = [1 / (slope or ALPHA) for slope in SLOPES.values()]
    assert found.tolist() == pytest.approx(expected, rel=3e-4)
    assert optimizer.state[model[0].bias]["momentum_buffer"].tolist() == [1.0]
    assert rows[0].alpha == pytest.approx(ALPHA, abs=2e-5)
    assert rows[0].largest_shift == pytest.approx((0.25 - 0.12669823) * 1.5, abs=1e-4)


def test_adam_keeps_its_weights_and_divides_both_moments():
    (model, optimizer), rows = converted("adamw")
    assert model[0].weight[0].tolist() == pytest.approx(list(SLOPES), abs=1e-7)
    state = optimizer.state[model[0].weight]
    divisors = [slope or 1 for slope in SLOPES.values()]
    assert state["exp_avg"][0].tolist() == pytest.approx([0.1 / d for d in divisors], rel=3e-4)
    squares = [0.001 / d**2 for d in divisors]
    assert state["exp_avg_sq"][0].tolist() == pytest.approx(squares, rel=6e-4)
    assert float(state["step"]) == 1
    assert (rows[0].alpha, rows[0].largest_shift) == (1.0, 0.0)

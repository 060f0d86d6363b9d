"""What an estimator learns of its shape, against the derivative of DSQ's staircase in NumPy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import RecipeError
from qtool.numerics.soft_staircase import soft_staircase
from qtool.quantizers.layers import quant_layers
from qtool.settings.section import check
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.recipe import why_not
from qtool.training.loop import Trainer
from qtool.training.optimizers import parameter_groups
from tests.runs.test_resume import LEARNED
from tests.runs.test_stops import ends_as_if_never_stopped

Array = np.ndarray[Any, Any]
ALPHA, SCALE, HIGH = 0.3, 0.4, 1.0


def staircase(u: Array, alpha: float, low: float = -HIGH, high: float = HIGH) -> Array:
    """Return the paper's soft staircase in steps: level by level, from the interval's lower end."""
    at = np.clip(u, low, high)
    interval = np.minimum(np.floor(at), high - 1)
    k, s = np.log(2 / alpha - 1), 1 / (1 - alpha)
    phi = s * np.tanh(k * (at - (interval + 0.5)))
    return interval + (phi + 1) / 2


def by_alpha(u: Array, alpha: float) -> Array:
    """Return the derivative of the staircase by alpha, worked out by hand."""
    at = np.clip(u, -HIGH, HIGH)
    t = at - (np.minimum(np.floor(at), HIGH - 1) + 0.5)
    k, s = np.log(2 / alpha - 1), 1 / (1 - alpha)
    tanh = np.tanh(k * t)
    return (s**2 * tanh - s * (1 - tanh**2) * t * 2 / (alpha * (2 - alpha))) / 2


def prepared(**estimator: Any) -> nn.Module:
    weights = {
        "bits": 2,
        "granularity": "per_tensor",
        "range": {"name": "fixed", "scale": SCALE},
        "estimator": {"name": "soft_quantization", "alpha": ALPHA} | estimator,
    }
    torch.manual_seed(0)
    linear = nn.Linear(50, 4, bias=False)
    linear.weight.data *= 6
    return qtool.prepare(nn.Sequential(linear), {"weights": weights}).train()


def weight_quantizer(net: nn.Module) -> Any:
    return quant_layers(net)["0"].weight_quantizer


@pytest.mark.parametrize("alpha", [0.02, 0.3, 0.9])
def test_the_soft_staircase_is_the_papers(alpha: float) -> None:
    u = torch.linspace(-2.2, 2.2, 445, dtype=torch.float64)
    found = soft_staircase(u, -HIGH, HIGH, alpha=torch.tensor(alpha, dtype=torch.float64))
    np.testing.assert_allclose(found, staircase(u.numpy(), alpha), rtol=0, atol=1e-12)


def test_alpha_learns_by_the_staircase_and_the_weight_by_its_slope() -> None:
    net = prepared()
    layer, quantizer = quant_layers(net)["0"], weight_quantizer(net)
    w = layer.weight.detach().double().numpy()
    g = torch.randn(4, 50)
    w_hat = quantizer(layer.weight)
    hard = np.clip(np.rint(w / SCALE), -HIGH, HIGH) * SCALE
    np.testing.assert_allclose(w_hat.detach(), hard, rtol=0, atol=1e-6)
    w_hat.backward(g)
    factor = (w.size * HIGH) ** -0.5
    expected = factor * SCALE * (g.double().numpy() * by_alpha(w / SCALE, ALPHA)).sum()
    np.testing.assert_allclose(float(quantizer.softness.grad), expected, rtol=0, atol=1e-6)
    assert abs(expected) > 1e-3
    k, t = np.arctanh(1 - ALPHA), w / SCALE - (np.floor(w / SCALE) + 0.5)
    slope = k / np.tanh(k) / np.cosh(2 * k * t) ** 2 * (np.abs(w / SCALE) <= HIGH)
    assert layer.weight.grad is not None
    np.testing.assert_allclose(layer.weight.grad.numpy(), g.numpy() * slope, rtol=0, atol=1e-5)


def test_the_slope_goes_by_what_alpha_has_become() -> None:
    net = prepared()
    layer, quantizer = quant_layers(net)["0"], weight_quantizer(net)
    quantizer.softness.data.fill_(0.7)
    quantizer(layer.weight).sum().backward()
    other = prepared(alpha=0.7)
    weight_quantizer(other)(quant_layers(other)["0"].weight).sum().backward()
    found, expected = layer.weight.grad, quant_layers(other)["0"].weight.grad
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_alpha_beyond_its_ends_counts_as_near_them_and_comes_back() -> None:
    net = prepared()
    layer, quantizer = quant_layers(net)["0"], weight_quantizer(net)
    quantizer.softness.data.fill_(1.4)
    w_hat = quantizer(layer.weight)
    w_hat.backward(torch.randn(4, 50))
    assert w_hat.isfinite().all()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert quantizer.softness.grad != 0


def test_alpha_is_a_parameter_of_the_group_of_scales_that_copies_keep() -> None:
    net = prepared()
    (scales,) = (g for g in parameter_groups(net) if g["role"] == "scales")
    assert scales["params"] == [weight_quantizer(net).softness]
    assert "0.weight_quantizer.softness" in copy.deepcopy(net).state_dict()
    with torch.no_grad():
        assert torch.equal(net(torch.eye(50)[:3]), copy.deepcopy(net)(torch.eye(50)[:3]))


def test_what_it_does_not_go_with_is_told() -> None:
    weights = {"bits": 2, "range": "absmax", "estimator": "soft_quantization", "blend": "cubic"}
    with pytest.raises(RecipeError, match="blend: soft_quantization learns"):
        check(WeightQuantization, weights, "r")
    alone = {"bits": 2, "range": "he_uniform", "estimator": "soft_quantization"}
    found = why_not(check(WeightQuantization, alone, "r"))
    assert found is not None
    assert found[0] == "estimator"


def test_a_run_that_learns_it_ends_as_if_it_had_never_stopped(tmp_path: Any) -> None:
    sides = {
        side: LEARNED["quantization"][side] | {"estimator": "soft_quantization"}
        for side in ("weights", "activations")
    }
    changes = LEARNED | {"quantization": LEARNED["quantization"] | sides}
    ends_as_if_never_stopped(changes, [((Trainer, "_take_step", 8), (1, 2))], tmp_path)


def learned(net: nn.Module) -> list[Tensor]:
    return [p for name, p in net.named_parameters() if name.endswith("softness")]


def test_activations_learn_theirs_too_and_convert_as_they_are() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
    side = {"bits": 3, "estimator": "soft_quantization"}
    x = torch.randn(8, 1, 8, 8)
    made = qtool.prepare(net, {"weights": side, "activations": side}, x)
    qtool.calibrate(made, [x])
    made.train()(x).square().mean().backward()
    assert learned(made)
    assert all(p.grad is not None and p.grad.isfinite() for p in learned(made))
    qtool.round_biases(made)
    with torch.no_grad():
        torch.testing.assert_close(qtool.convert(made.eval())(x), made(x), rtol=0, atol=1e-5)

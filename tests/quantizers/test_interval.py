"""Intervals of weights that are learned (QIL), against the paper's formula in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qtool
from qtool.errors import RecipeError
from qtool.integer.layers import integer_layers
from qtool.numerics.interval import by_interval
from qtool.quantizers.control import begin_step
from qtool.quantizers.layers import quant_layers
from qtool.recipe.recipe import Recipe
from qtool.settings.section import check
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.recipe import why_not
from qtool.training.loop import Trainer
from qtool.training.optimizers import parameter_groups
from tests.kit import recipe
from tests.runs.test_resume import LEARNED
from tests.runs.test_stops import ends_as_if_never_stopped

Array = np.ndarray[Any, Any]
CENTER, DISTANCE = 0.11, 0.07


def place(w: Array, c: float, d: float, gamma: float) -> Array:
    """Return the paper's transformer: (alpha |w| + beta)^gamma inside, 0 or a sign beyond."""
    alpha, beta = 0.5 / d, -0.5 * c / d + 0.5
    with np.errstate(invalid="ignore"):
        inside = np.power(alpha * np.abs(w) + beta, gamma)
    return np.sign(w) * np.select([np.abs(w) < c - d, np.abs(w) > c + d], [0.0, 1.0], inside)


def prepared(bits: int = 3, **params: Any) -> nn.Module:
    torch.manual_seed(0)
    weights = {"bits": bits, "range": {"name": "qil"} | params, "granularity": "per_tensor"}
    return qtool.prepare(nn.Sequential(nn.Linear(40, 4)), {"weights": weights}).train()


def weight_quantizer(net: nn.Module) -> Any:
    return quant_layers(net)["0"].weight_quantizer


@pytest.mark.parametrize("gamma", [1.0, 0.5, 2.0])
def test_the_place_in_an_interval_is_the_papers(gamma: float) -> None:
    w = torch.linspace(-0.3, 0.3, 601, dtype=torch.float64)
    c, d = (torch.tensor(v, dtype=torch.float64) for v in (CENTER, DISTANCE))
    found = by_interval(w, c, d, gamma)
    np.testing.assert_allclose(found, place(w.numpy(), CENTER, DISTANCE, gamma), rtol=0, atol=1e-12)


def test_weights_and_interval_have_the_gradients_of_the_formula() -> None:
    net = prepared()
    layer, quantizer = quant_layers(net)["0"], weight_quantizer(net)
    interval = quantizer.interval
    interval.center.data.fill_(CENTER)
    interval.distance.data.fill_(DISTANCE)
    w, high = layer.weight.detach().double().numpy(), 3
    g = torch.randn(4, 40)
    w_hat = quantizer(layer.weight)
    expected = np.rint(place(w, CENTER, DISTANCE, 1.0) * high) / high
    np.testing.assert_allclose(w_hat.detach(), expected, rtol=0, atol=1e-6)
    w_hat.backward(g)
    size, weighed = np.abs(w), g.double().numpy()
    inside = (size > CENTER - DISTANCE) & (size < CENTER + DISTANCE)
    slope = inside / (2 * DISTANCE)
    factor = (w.size * high) ** -0.5
    by_center = -np.sign(w) * slope
    by_distance = -np.sign(w) * inside * (size - CENTER) / (2 * DISTANCE**2)
    assert layer.weight.grad is not None
    np.testing.assert_allclose(layer.weight.grad.numpy(), weighed * slope, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        float(interval.center.grad), factor * (weighed * by_center).sum(), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        float(interval.distance.grad), factor * (weighed * by_distance).sum(), rtol=0, atol=1e-5
    )


def test_it_begins_with_all_sizes_and_stays_among_them() -> None:
    net = prepared()
    interval, layer = weight_quantizer(net).interval, quant_layers(net)["0"]
    half = float(layer.weight.detach().abs().max()) / 2
    assert interval.center.tolist() == interval.distance.tolist() == pytest.approx(half)
    interval.center.data.fill_(-3.0)
    interval.distance.data.fill_(-1.0)
    begin_step(net)
    assert interval.center.tolist() == 0
    assert interval.distance.tolist() == pytest.approx(0.02 * half)
    interval.center.data.fill_(7.0)
    begin_step(net)
    assert interval.center.tolist() == pytest.approx(2 * half)


def test_an_interval_learns_with_the_scales_and_not_where_its_weight_is_frozen() -> None:
    net = prepared()
    interval = weight_quantizer(net).interval
    (scales,) = (g for g in parameter_groups(net) if g["role"] == "scales")
    assert {id(p) for p in scales["params"]} == {id(interval.center), id(interval.distance)}
    quant_layers(net)["0"].freeze()
    net(torch.randn(3, 40)).sum().backward()
    assert interval.center.grad is None


def test_the_integers_are_those_that_were_trained_with() -> None:
    net = prepared(bits=2, gamma=0.5)
    interval, layer = weight_quantizer(net).interval, quant_layers(net)["0"]
    interval.center.data.mul_(0.9)
    interval.distance.data.mul_(0.7)
    expected = weight_quantizer(net.eval())(layer.weight).detach()
    net(torch.randn(3, 40))
    codes = integer_layers(qtool.convert(net))["0"].codes
    assert torch.equal(codes.float(), expected)
    assert set(codes.unique().tolist()) == {-1, 0, 1}


def test_a_run_with_intervals_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    weights = LEARNED["quantization"]["weights"] | {"range": "qil"}
    changes = LEARNED | {"quantization": LEARNED["quantization"] | {"weights": weights}}
    ends_as_if_never_stopped(changes, [((Trainer, "_take_step", 8), (1, 2))], tmp_path)


def test_what_it_does_not_go_with_is_told() -> None:
    for keys in ({"bits": 1}, {"bits": 3, "grid": "mid_rise"}, {"bits": 4, "grid": "full"}):
        with pytest.raises(RecipeError, match="grid: qil rounds to levels on both sides of 0"):
            check(WeightQuantization, keys | {"range": "qil"}, "r")
    changes = {"quantization.weights": {"bits": 2, "range": "qil"}, "training.cage": 1.0}
    with pytest.raises(RecipeError, match=r"training\.cage: qil changes weights"):
        check(Recipe, recipe(changes), "r")
    found = why_not(check(WeightQuantization, {"bits": 2, "range": "qil"}, "r"))
    assert found is not None
    assert found[0] == "range"

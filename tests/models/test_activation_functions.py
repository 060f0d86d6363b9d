"""Activation functions that train: their formulas in NumPy, and integers behind them."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import qtool
from qtool.errors import RecipeError
from qtool.integer.layers import integer_layers
from qtool.models.activation_functions import (
    ACTIVATION_FUNCTIONS,
    Activation,
    PiecewiseLinear,
    RPReLU,
)
from qtool.models.papers import MODELS
from qtool.quantizers.layers import quant_layers

Array = np.ndarray[Any, Any]


def test_a_recipe_may_name_every_function() -> None:
    assert list(get_args(Activation)) == ACTIVATION_FUNCTIONS.names()


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
@pytest.mark.parametrize("activation", ["rprelu", "piecewise_linear"])
def test_a_network_has_it_in_place_of_every_relu(name: str, activation: str) -> None:
    plain = MODELS.build(name)(10, 1, 16)
    made = MODELS.build(name, activation=activation)(10, 1, 16)
    kind = {"rprelu": RPReLU, "piecewise_linear": PiecewiseLinear}[activation]
    relus = [n for n, m in plain.named_modules() if isinstance(m, nn.ReLU)]
    assert [n for n, m in made.named_modules() if isinstance(m, kind)] == relus
    assert made(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_segments_are_a_number_of_levels() -> None:
    with pytest.raises(RecipeError, match="segments"):
        MODELS.build("lenet5", activation="piecewise_linear", segments=0)
    with pytest.raises(RecipeError, match="activation"):
        MODELS.build("lenet5", activation="prelu")


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 4)])
def test_rprelu_is_the_papers_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, module = torch.randn(shape), RPReLU(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(3) * 0.4
    gamma, beta, zeta = (
        p.detach().double().numpy().reshape(3, *[1] * (len(shape) - 2)) for p in module.parameters()
    )
    at = x.double().numpy()
    expected = np.where(at > gamma, at - gamma + zeta, beta * (at - gamma) + zeta)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=0, atol=1e-6)


def levels_and_slopes(x: Array, start: float, widths: Array) -> tuple[Array, Array, Array]:
    """Return level, d/dx and d/dwidths [N, segments] of the paper's quantizer, segment by segment.

    The level grows by one at the middle of each segment; the gradient is that of the straight line
    from level to level.
    """
    level, slope = np.zeros(len(x)), np.zeros(len(x))
    by_widths = np.zeros((len(x), len(widths)))
    begin = start
    for k, width in enumerate(widths):
        level = np.where(x > begin + width / 2, k + 1.0, level)
        inside = (x > begin) & (x < begin + width)
        slope = np.where(inside, 1 / width, slope)
        by_widths[inside, k] = -(x[inside] - begin) / width**2
        by_widths[inside, :k] = -1 / width
        begin += width
    return level, slope, by_widths


def test_rounded_it_has_the_thresholds_and_gradients_of_n2uq() -> None:
    torch.manual_seed(1)
    widths, start = np.array([0.3, 0.9, 0.45]), -0.2
    module = PiecewiseLinear(3)
    module.widths.data, module.start.data = torch.tensor(widths).float(), torch.tensor(start)
    section = {
        "weights": None,
        "activations": {
            "bits": 2,
            "grid": "unsigned",
            "range": {"name": "fixed", "scale": 1.0},
            "place": "layer_inputs",
        },
    }
    x = torch.linspace(-1, 2.2, 401).reshape(-1, 1).requires_grad_()
    made = qtool.prepare(nn.Sequential(module, nn.Linear(1, 1)), section, x.detach())
    quantizer = quant_layers(made)["1"].quantizer_of_input
    assert quantizer is not None
    function = made.get_submodule("0")
    found = quantizer(function(x))
    level, slope, by_widths = levels_and_slopes(x.detach().double().numpy()[:, 0], start, widths)
    np.testing.assert_allclose(found.detach().numpy()[:, 0], level, rtol=0, atol=1e-6)
    g = torch.randn(found.shape)
    found.backward(g)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[:, 0], g[:, 0] * torch.tensor(slope), rtol=1e-5, atol=1e-6)
    found_by = {n: p.grad for n, p in function.named_parameters() if p.grad is not None}
    grads = {name: grad.numpy() for name, grad in found_by.items()}
    weighed = g[:, 0].double().numpy()
    np.testing.assert_allclose(grads["widths"], weighed @ by_widths, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads["start"], -(weighed * slope).sum(), rtol=1e-4, atol=1e-4)


def test_a_segment_stays_wide_enough_to_divide_by() -> None:
    module = PiecewiseLinear(2)
    module.widths.data = torch.tensor([-1.0, 0.5])
    y = module(torch.tensor([-1.0, 0.5, 2.0]))
    assert y.isfinite().all()
    assert y.diff().min() >= 0
    y.sum().backward()
    assert module.widths.grad is not None
    assert module.widths.grad[0] == 0


BINARY = {"bits": 1, "grid": "mid_rise", "estimator": "approx_sign"}
TWO_BITS = {"bits": 2, "grid": "unsigned", "range": {"name": "fixed", "scale": 1.0}}


@pytest.mark.parametrize(
    ("function", "activations"),
    [(RPReLU(4), BINARY), (PiecewiseLinear(3), TWO_BITS)],
    ids=["rprelu", "piecewise_linear"],
)
@pytest.mark.parametrize("place", ["layer_inputs", "every_value"])
def test_what_follows_it_computes_in_integers_in_the_runtime_too(
    function: nn.Module, activations: dict[str, Any], place: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3)
    net = nn.Sequential(convolution, function, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    ends = {"bits": 8, "grid": "auto", "range": {"name": "mse"}, "estimator": "straight_through"}
    section = {
        "weights": {"bits": 2},
        "activations": activations | {"place": place},
        "overrides": [{"match": ["0", "4"], "weights": {"bits": 8}, "activations": ends}],
    }
    x = torch.randn(16, 1, 8, 8)
    made = qtool.prepare(net, section, x)
    qtool.calibrate(made, [x])
    qtool.round_biases(made)
    integer = qtool.convert(made.eval())
    with torch.no_grad():
        expected, found = made(x), integer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert integer_layers(integer).keys() == {"0", "2", "4"}
    path = tmp_path / "model.onnx"
    qtool.export_onnx(integer, x, path)
    session = onnxruntime.InferenceSession(path)
    (there,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(np.asarray(there), found.numpy(), rtol=0, atol=1e-4)

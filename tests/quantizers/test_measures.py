"""What codes are like, against NumPy on the weights themselves."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qtool
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.on_grid import OnGrid
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.measures import activation_quantizers, code_measures, saturated
from tests import kit

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def prepared(weights: dict[str, Any] | None, **keys: Any) -> nn.Module:
    section = {"weights": weights, **keys}
    return qtool.prepare(kit.float_net(), section, IMAGES).eval()


@pytest.mark.parametrize(
    ("weights", "levels"),
    [
        ({"bits": 3, "grid": "narrow"}, np.arange(-3, 4)),
        ({"bits": 2, "grid": "full"}, np.arange(-2, 2)),
        ({"bits": 2, "grid": "mid_rise"}, np.array([-1.5, -0.5, 0.5, 1.5])),
        ({"bits": 1}, np.array([-0.5, 0.5])),
        ({"bits": 4, "granularity": "per_tensor"}, np.arange(-7, 8)),
    ],
    ids=str,
)
def test_weights_are_measured_as_numpy_does(weights: dict[str, Any], levels: Any) -> None:
    model = prepared({"range": "absmax", **weights})
    layer = quant_layers(model)["conv2"]
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.scale.data *= 0.6  # so that some weights lie beyond the grid
    found: dict[str, Any] = dict(code_measures(model))

    weight = layer.weight.detach().double().numpy()
    step = layer.weight_quantizer.scale.double().numpy()
    steps = weight / step
    nearest = np.abs(steps[..., None] - levels).argmin(-1)
    error = weight - levels[nearest] * step
    assert found["levels_in_use"]["conv2"] == len(np.unique(nearest))
    outside = (steps > levels[-1]) | (steps < levels[0])
    assert 0 < found["saturated_weights"]["conv2"] == pytest.approx(outside.mean(), abs=1e-6)
    sqnr = 10 * np.log10((weight**2).sum() / (error**2).sum())
    assert found["sqnr"]["conv2"] == pytest.approx(sqnr, rel=1e-5)
    assert found["weight_scale"]["conv2"] == pytest.approx(step.mean(), rel=1e-6)
    assert set(found["weight_scale"]) == {"conv1", "conv2", "fc"}


def test_a_weight_on_its_levels_has_no_error_to_compare_with() -> None:
    model = prepared({"bits": 4, "range": {"name": "fixed", "scale": 0.015625}})
    layer = quant_layers(model)["fc"]
    layer.weight.data = torch.randint(-7, 8, layer.weight.shape) * 0.015625
    found: dict[str, Any] = dict(code_measures(model))
    assert "fc" not in found["sqnr"]
    assert found["saturated_weights"]["fc"] == 0.0
    assert found["weight_scale"]["fc"] == 0.015625


@pytest.mark.parametrize("place", ["layer_inputs", "relu_outputs", "every_value"])
def test_steps_of_activations_stand_under_what_is_rounded(place: str) -> None:
    model = prepared(None, activations={"bits": 4, "place": place})
    found: dict[str, Any] = dict(code_measures(model))
    assert set(found) == {"input_scale"}
    steps = found["input_scale"]
    for name, quantizer in activation_quantizers(model).items():
        assert steps[name] == float(quantizer.scale.detach())
    assert len(steps) >= 3
    assert (set(steps) == {"conv1", "conv2", "fc"}) == (place != "every_value")


def test_a_float_network_has_no_measures() -> None:
    assert code_measures(kit.float_net()) == {}


def test_what_a_relu_makes_zero_does_not_saturate() -> None:
    x = torch.tensor([-9.0, -0.1, 0.0, 1.0, 3.0, 3.1])
    unsigned = OnGrid(IntegerGrid(2, "unsigned"), torch.tensor(1.0))
    assert saturated(x, unsigned) == pytest.approx(1 / 6)
    full = OnGrid(IntegerGrid(2, "full"), torch.tensor(1.0))
    assert saturated(x, full) == pytest.approx(3 / 6)
    moved = OnGrid(IntegerGrid(2, "asymmetric"), torch.tensor(1.0), zero_point=1)
    assert saturated(x, moved) == pytest.approx(3 / 6)  # levels are worth -1 .. 2

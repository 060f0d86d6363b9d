"""What is said of a trained network's layers, held against codes computed by hand."""

import math

import pytest
import torch

import qtool
from qtool.inspection.layer_figures import layer_figures, with_history
from qtool.quantizers.layers import quant_layers
from qtool.reports.results import EpochLine
from tests.kit import float_net


def test_levels_ends_and_error_are_those_of_the_codes() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sides = {"weights": {"bits": 3, "range": "absmax"}, "activations": {"bits": 4}}
    model = qtool.prepare(float_net(), sides, example=images)
    found = {each.layer: each for each in layer_figures(model)}
    assert list(found) == list(quant_layers(model)) == ["conv1", "conv2", "fc"]
    for name, layer in quant_layers(model).items():
        said, weight = found[name], layer.weight.detach().double().flatten(1)
        step = weight.abs().amax(1, keepdim=True) / 3
        codes = (weight / step).round().clamp(-3, 3)
        error = ((weight - codes * step) ** 2).sum()
        assert said.levels_used == len(codes.unique())
        assert said.levels == 7
        assert said.saturated == pytest.approx(float((codes.abs() == 3).double().mean()))
        wanted = 10 * math.log10(float((weight**2).sum() / error))
        assert said.sqnr == pytest.approx(wanted, abs=1e-3)
        assert said.weight_scale == pytest.approx((float(step.min()), float(step.max())))
        images_have = {"conv1": 8}
        assert (said.weight_bits, said.input_bits) == (3, images_have.get(name, 4))


def test_of_a_float_side_nothing_is_said() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = qtool.prepare(float_net(), {"activations": {"bits": 4}}, example=images)
    said = layer_figures(model)[0]
    assert (said.weight_bits, said.levels, said.sqnr, said.weight_scale) == (None,) * 4


def test_flips_are_added_epoch_by_epoch() -> None:
    model = qtool.prepare(float_net(), {"weights": {"bits": 3}})
    line = {
        "epoch": 1,
        "step": 1,
        "train_loss": 1.0,
        "train_accuracy": None,
        "learning_rate": 0.1,
        "flip_ratio": {"fc": 0.5},
        "validation_loss": None,
        "validation_accuracy": None,
        "seconds": 1,
    }
    history = [EpochLine.model_validate(line | {"epoch": k}) for k in (1, 2)]
    found = {each.layer: each for each in with_history(layer_figures(model), history)}
    assert found["fc"].flip_ratio == [0.5, 0.5]
    assert found["conv1"].flip_ratio == []
    assert found["fc"].oscillation_frequency == []

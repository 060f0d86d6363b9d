"""Calibration: scales from batches, and nothing else changed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.weights import WeightQuantizer

BATCHES = [torch.randn(4, 6, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def inputs_of(model: nn.Module, name: str) -> ActivationQuantizer:
    found = model.get_submodule(f"{name}.input_quantizer")
    assert isinstance(found, ActivationQuantizer)
    return found


def prepared(rule: Any, example: Tensor | None = None, **keys: Any) -> nn.Module:
    quantization = {"activations": {"bits": 4, "place": "layer_inputs", "range": rule} | keys}
    return qtool.prepare(network().eval(), quantization, example)


def test_absmax_sees_every_batch() -> None:
    model = prepared("absmax")
    qtool.calibrate(model, BATCHES)
    largest = max(float(batch.abs().max()) for batch in BATCHES)
    np.testing.assert_allclose(inputs_of(model, "0").scale, largest / 7, rtol=1e-6)


def test_a_learned_scale_starts_from_the_mean_over_all_batches() -> None:
    model = prepared("learned")
    qtool.calibrate(model, iter(BATCHES))
    mean = torch.cat(BATCHES).abs().mean()
    np.testing.assert_allclose(inputs_of(model, "0").scale.detach(), 2 * mean / 7**0.5, rtol=1e-6)


def test_a_moving_average_goes_over_the_batches_in_their_order() -> None:
    model = prepared({"name": "ema_min_max", "decay": 0.7}, grid="asymmetric")
    qtool.calibrate(model, BATCHES)
    low, high = float(BATCHES[0].min()), float(BATCHES[0].max())
    for batch in BATCHES[1:]:
        low, high = 0.7 * low + 0.3 * float(batch.min()), 0.7 * high + 0.3 * float(batch.max())
    made = inputs_of(model, "0")
    np.testing.assert_allclose(made.scale, (high - low) / 15, rtol=1e-5)
    assert made.zero_point == round(-low / ((high - low) / 15))


def test_later_layers_see_unquantized_activations() -> None:
    net = network().eval()
    model = prepared("absmax", BATCHES[0])
    qtool.calibrate(model, BATCHES)
    with torch.no_grad():
        largest = net[:4](torch.cat(BATCHES)).max()
    made = inputs_of(model, "4")
    assert made.known_grid.kind == "unsigned"
    np.testing.assert_allclose(made.scale, largest / 15, rtol=1e-5)


def test_calibration_replaces_what_the_example_had_set() -> None:
    model = prepared("absmax", 100 * BATCHES[0])
    qtool.calibrate(model, BATCHES[:1])
    np.testing.assert_allclose(inputs_of(model, "0").scale, BATCHES[0].abs().max() / 7, rtol=1e-6)


def test_weight_scales_are_set_anew() -> None:
    model = qtool.prepare(network(), {"weights": {"bits": 4, "granularity": "per_tensor"}})
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        weight.mul_(5)
    qtool.calibrate(model, BATCHES)
    made = model.get_submodule("0.weight_quantizer")
    assert isinstance(made, WeightQuantizer)
    expected = 2 * weight.detach().abs().mean() / 7**0.5
    np.testing.assert_allclose(made.scale.detach(), expected, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_calibration_leaves_batch_norms_random_numbers_and_the_mode_alone(training: bool) -> None:
    model = prepared("learned").train(training)
    norms = {n: b.clone() for n, b in model.get_submodule("1").named_buffers()}
    parameters = {n: p.clone() for n, p in model.named_parameters() if "scale" not in n}
    state = torch.get_rng_state()
    qtool.calibrate(model, BATCHES)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in norms.items():
        assert torch.equal(model.get_buffer(f"1.{name}"), value)
    for name, value in parameters.items():
        assert torch.equal(model.get_parameter(name), value)
        assert model.get_parameter(name).grad is None
    assert all(module.training is training for module in model.modules())


def test_after_calibration_values_are_rounded() -> None:
    model = prepared("absmax")
    qtool.calibrate(model, BATCHES)
    made = inputs_of(model, "0")
    x = torch.cat(BATCHES)
    assert len(torch.unique(made(x))) <= 16 < len(torch.unique(x))


def test_calibration_may_be_the_first_pass_of_a_model_that_skips_a_layer() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + nn.functional.linear(x, self.unused.weight)

    model = qtool.prepare(
        Skips().eval(),
        {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}},
    )
    qtool.calibrate(model, BATCHES)
    assert inputs_of(model, "used").ready


def test_no_batch_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        qtool.calibrate(prepared("absmax"), [])


def test_a_calibration_that_fails_leaves_nothing_behind() -> None:
    model = prepared("absmax").train()
    norms = {n: b.clone() for n, b in model.get_submodule("1").named_buffers()}
    with pytest.raises(RuntimeError, match="shapes"):
        qtool.calibrate(model, [100 * BATCHES[0], torch.zeros(4, 5)])
    for name, value in norms.items():
        assert torch.equal(model.get_buffer(f"1.{name}"), value)
    model(BATCHES[0])
    np.testing.assert_allclose(inputs_of(model, "0").scale, BATCHES[0].abs().max() / 7, rtol=1e-6)

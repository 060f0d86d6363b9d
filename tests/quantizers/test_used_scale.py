"""The scale that is computed with: the stored one, however far an optimizer has pushed it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.integer.layers import integer_layers
from qtool.numerics.ranges import SMALLEST_SCALE
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import quant_layers
from tests.kit import float_net

EACH: dict[str, dict[str, Any]] = {
    "1 bit": {"weights": {"bits": 1}, "activations": {"bits": 1, "place": "layer_inputs"}},
    "per tensor": {
        "weights": {"bits": 4, "granularity": "per_tensor"},
        "activations": {"bits": 8, "place": "layer_inputs"},
    },
    "pact": {
        "weights": {"bits": 4},
        "activations": {"bits": 4, "place": "layer_inputs", "range": "pact"},
    },
    "learned offset": {
        "weights": {"bits": 4},
        "activations": {"bits": 4, "place": "layer_inputs", "grid": "asymmetric"},
    },
    "frozen weights": {
        "weights": {"bits": 3, "freezing": {"threshold": 0.02, "momentum": 0.1}},
        "activations": {"bits": 4, "place": "layer_inputs"},
    },
    "biases stay float": {
        "weights": {"bits": 2},
        "activations": {"bits": 1, "place": "layer_inputs", "grid": "full"},
    },
}
each = pytest.mark.parametrize("quantization", EACH.values(), ids=EACH)


def learned_scales(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.endswith("quantizer.scale")]


def trained(quantization: dict[str, Any], steps: int = 2) -> tuple[nn.Module, Tensor]:
    """Return a prepared network after some training steps, and the images it saw."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    model = qtool.prepare(float_net(), quantization, images).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return model, images


@torch.no_grad()
def push(model: nn.Module, value: float, share: int = 2) -> nn.Module:
    """Return a copy whose learned scales of several channels, and one of a tensor, have a value."""
    model = copy.deepcopy(model)
    scales = learned_scales(model)
    for scale in scales:
        if scale.ndim:
            scale[:share] = value
    next(scale for scale in reversed(scales) if not scale.ndim).fill_(value)
    return model


@each
def test_a_scale_below_the_smallest_counts_as_that_without_a_pass_before(quantization) -> None:
    model, images = trained(quantization)
    pushed, expected = push(model, -0.01), push(model, SMALLEST_SCALE)
    with torch.no_grad():
        assert torch.equal(pushed.eval()(images), expected.eval()(images))
    pushed = push(model, -0.01)
    fresh = qtool.prepare(float_net(), quantization, images)
    fresh.load_state_dict(pushed.state_dict())
    wanted = integer_layers(qtool.convert(expected))
    for given in (pushed.eval(), pushed.train(), fresh, copy.deepcopy(pushed)):
        found = integer_layers(qtool.convert(given))
        assert found.keys() == wanted.keys()
        for name, layer in wanted.items():
            for key, tensor in layer.state_dict().items():
                if isinstance(tensor, Tensor):
                    assert torch.equal(found[name].state_dict()[key], tensor), (name, key)


def test_evaluation_leaves_the_stored_scale_alone() -> None:
    model, images = trained(EACH["1 bit"])
    pushed = push(model, -0.01).eval()
    before = copy.deepcopy(pushed.state_dict())
    with torch.no_grad():
        pushed(images)
    for key, tensor in pushed.state_dict().items():
        assert not isinstance(tensor, Tensor) or torch.equal(tensor, before[key]), key


@each
def test_training_goes_on_from_the_smallest_scale_with_its_gradient(quantization) -> None:
    model, images = trained(quantization)
    pushed, expected = push(model, -0.01).train(), push(model, SMALLEST_SCALE).train()
    for given in (pushed, expected):
        given(images).square().mean().backward()
    for found, wanted in zip(learned_scales(pushed), learned_scales(expected), strict=True):
        assert torch.equal(found, wanted)
        assert found.grad is not None
        assert wanted.grad is not None
        assert torch.equal(found.grad, wanted.grad)


def test_whoever_looks_at_a_model_sees_the_scale_that_is_computed_with() -> None:
    pushed = push(trained(EACH["per tensor"])[0], -0.01)
    quantizers = [m for m in pushed.modules() if isinstance(m, FakeQuantize)]
    assert any(float(q.scale.detach().min()) < 0 for q in quantizers)
    for quantizer in quantizers:
        assert not quantizer.used_scale.requires_grad
        assert quantizer.used_scale.min() >= torch.tensor(SMALLEST_SCALE)
        assert torch.equal(quantizer.on_grid.step, quantizer.used_scale)


def test_a_scale_that_is_not_a_number_is_not_hidden() -> None:
    model, images = trained(EACH["per tensor"])
    layer = quant_layers(model)["conv2"]
    assert layer.weight_quantizer is not None
    with torch.no_grad():
        layer.weight_quantizer.scale.fill_(torch.nan)
    assert layer.weight_quantizer.used_scale.isnan().all()
    with torch.no_grad():
        assert model.eval()(images).isnan().all()


def test_oscillations_are_counted_by_the_scale_that_is_computed_with() -> None:
    weight = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = weight
    model = qtool.prepare(nn.Sequential(layer), {"weights": {"bits": 4, "dampening": 0.1}})
    quantizer = quant_layers(model)["0"].weight_quantizer
    assert quantizer is not None
    with torch.no_grad():
        quantizer.scale.fill_(-0.01)
    qtool.begin_step(model)
    assert quantizer.tracker.codes.tolist() == [7, -7, 7, 7]
    penalty = qtool.dampening_penalty(model)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0)  # all lie outside: nothing pulls

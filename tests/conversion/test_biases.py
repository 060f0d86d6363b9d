"""Biases are moved to where int32 puts them, wherever they really stand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import qtool
from qtool.conversion.fold_batch_norm import foldable, shift_norm
from qtool.graph.recording import Norm
from qtool.integer.layers import integer_layers
from tests.kit import float_net

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
SECTION = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}


class Stretched(nn.Module):
    """An affine map of channels whose `bias` is none, and whose constants have other names."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(0.5, 1.5, 8).log())
        self.register_buffer("start", norm.bias.detach().reshape(8, 1, 1).clone())

    def forward(self, x):
        return x * self.bias.exp().reshape(8, 1, 1) + self.start


def net_with(norms: str) -> nn.Module:
    net = float_net()
    if norms == "without scale and shift":
        for name in ("bn1", "bn2"):
            old = net.get_submodule(name)
            new = nn.BatchNorm2d(8, affine=False).eval()
            new.running_mean.copy_(old.running_mean)
            new.running_var.copy_(old.running_var)
            setattr(net, name, new)
    elif norms == "without shift":
        for norm in (net.bn1, net.bn2):
            norm.bias = None
    elif norms in ("frozen", "a user's own"):
        for name in ("bn1", "bn2"):
            old = net.get_submodule(name)
            if norms == "frozen":
                new = FrozenBatchNorm2d(8)
                new.load_state_dict(old.state_dict(), strict=False)
            else:
                new = Stretched(old)
                net.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            setattr(net, name, new)
    elif norms == "none":
        net.bn1 = net.bn2 = nn.Identity()
        net.conv1 = nn.Conv2d(3, 8, 3, padding=1)
    return net


def constants(model: nn.Module) -> dict[str, np.ndarray]:
    """Return what stands behind the products of each convolution, float64, by hand."""
    found = {}
    for layer, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2)):
        bias = torch.zeros(8) if layer.bias is None else layer.bias.detach()
        value = bias.double().numpy()
        if isinstance(norm, Stretched):
            value = value * norm.bias.detach().double().exp().numpy()
            value = value + norm.start.double().numpy().reshape(-1)
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            var, mean = norm.running_var.double().numpy(), norm.running_mean.double().numpy()
            gain = 1 / np.sqrt(var + norm.eps)
            if norm.weight is not None:
                gain = gain * norm.weight.detach().double().numpy()
            value = (value - mean) * gain
            if norm.bias is not None:
                value = value + norm.bias.detach().double().numpy()
        found["conv1" if layer is model.conv1 else "conv2"] = value
    return found


NORMS = ["usual", "without scale and shift", "without shift", "frozen", "a user's own", "none"]


@pytest.mark.parametrize("norms", NORMS)
def test_a_constant_moves_to_the_grid_by_at_most_half_a_step_and_then_stays(norms):
    model = qtool.prepare(net_with(norms), SECTION, IMAGES).eval()
    before = constants(model)
    layers = integer_layers(qtool.convert(model))
    steps = {name: layers[name].bias_scale.double().numpy() for name in before}
    assert all(layers[name].spec.bias == "int32" for name in before)

    qtool.round_biases(model)
    moved = constants(model)
    for name, step in steps.items():
        shift = np.abs(moved[name] - before[name]) / step
        assert shift.max() <= 0.501
        assert shift.max() > 0.01
        apart = moved[name] / step
        assert np.abs(apart - np.round(apart)).max() < 1e-2

    once = copy.deepcopy(model.state_dict())
    qtool.round_biases(model)
    for name, value in model.state_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, once[name], rtol=2e-7, atol=2e-7)
    with torch.no_grad():
        torch.testing.assert_close(qtool.convert(model)(IMAGES), model(IMAGES), rtol=0, atol=1e-4)


def test_a_channel_without_gain_and_shift_stays_as_it_is():
    net = net_with("without shift")
    net.bn2.weight.data[3] = 0.0
    model = qtool.prepare(net, SECTION, IMAGES).eval()
    before = model.bn2.running_mean.clone()
    qtool.round_biases(model)

    assert model.bn2.running_mean[3] == before[3]
    assert (model.bn2.running_mean != before).sum() == 7
    assert torch.isfinite(qtool.convert(model)(IMAGES)).all()


class ByFormula(nn.Module):
    """A batch norm of a user's own, in evaluation."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(32, generator=generator)) for _ in range(2)
        )
        self.register_buffer("mean", torch.randn(32, generator=generator))

    def forward(self, x):
        return (x - self.mean.reshape(32, 1, 1)) * self.weight.reshape(32, 1, 1) + (
            self.bias.reshape(32, 1, 1)
        )


@pytest.mark.parametrize("seed", range(10))
def test_what_a_norm_of_ones_own_adds_moves_whatever_its_numbers_are(seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(ByFormula(generator))
    norm = Norm("0", "", shape=(2, 32, 4, 4), axis=-3)
    was, by = foldable(model, norm), torch.randn(32, generator=generator).double()

    shift_norm(model, norm, None, by)

    now = foldable(model, norm)
    torch.testing.assert_close(now.shift, was.shift + by, rtol=1e-6, atol=1e-6)

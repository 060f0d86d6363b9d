"""Equalization in front of depthwise layers, against its formula and the float network."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.graph.inputs import Inputs
from qtool.post_training import improve as improving
from qtool.post_training.equalization import FARTHEST, equalize, factors_of
from qtool.post_training.held_codes import codes_of
from qtool.post_training.improve import improve
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.control import in_float
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import prepare

FOUR_BITS = {"weights": {"bits": 4}, "activations": {"bits": 4}}


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A depthwise convolution that reads channels of very different sizes."""

    def __init__(
        self,
        *,
        norm: bool = True,
        activation: str = "relu",
        groups: int = 8,
        multiplier: int = 1,
        reads_twice: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.activation = {"relu": nn.ReLU(), "relu6": nn.ReLU6(), "none": nn.Identity()}[
            activation
        ]
        self.depthwise = nn.Conv2d(8, 8 * multiplier, 3, groups=groups)
        self.last = nn.Conv2d(8 * multiplier, 4, 1)
        self.reads_twice = reads_twice
        sizes = torch.logspace(-1.5, 0.5, 8)
        with torch.no_grad():
            if isinstance(self.norm, nn.BatchNorm2d):
                self.norm.weight.copy_(sizes)
            else:
                self.first.weight.mul_(sizes.reshape(-1, 1, 1, 1))
                assert self.first.bias is not None
                self.first.bias.mul_(sizes)
            by = sizes.repeat_interleave(multiplier) if groups > 1 else torch.ones(8)
            self.depthwise.weight.div_(by.reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.first(x)))
        made = self.last(self.depthwise(y))
        return made + y[:, :4, 1:-1, 1:-1] if self.reads_twice else made


def calibrated(net: nn.Module, section: Mapping[str, object] = FOUR_BITS) -> nn.Module:
    model = prepare(net.eval(), section, images(), trains=False)
    calibrate(model, [images()])
    return model.eval()


@torch.no_grad()
def float_outputs(model: nn.Module) -> Tensor:
    with in_float(model):
        made: Tensor = model(images())
    return made


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_the_float_network_stays_and_the_error_falls(
    norm: bool, activation: str, multiplier: int
) -> None:
    model = calibrated(Net(norm=norm, activation=activation, multiplier=multiplier))
    before, layer = float_outputs(model), quant_layers(model)["depthwise"]
    codes = codes_of(layer)
    (row,) = equalize(model, Inputs.of(images()))
    assert torch.allclose(float_outputs(model), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(codes_of(layer), codes)
    assert (row.layer, row.step) == ("first", "equalization")
    assert row.note.startswith("for depthwise, by the largest values")
    assert row.error_before is not None
    assert row.error_after is not None
    assert row.error_after < 0.5 * row.error_before


@torch.no_grad()
def test_values_are_divided_by_what_the_formula_says() -> None:
    model = calibrated(Net())
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(args[0])

    quant_layers(model)["depthwise"].register_forward_pre_hook(note)
    float_outputs(model)
    (row,) = equalize(model, Inputs.of(images()))
    float_outputs(model)
    share = float(row.note.split()[-1])
    assert share > 0
    before, after = seen[0].double().numpy(), seen[-1].double().numpy()
    largest = np.abs(before).max((0, 2, 3)) ** share
    s = np.clip(largest / np.exp(np.log(largest).mean()), 1 / FARTHEST, FARTHEST)
    np.testing.assert_allclose(after, before / s[:, None, None], rtol=1e-4, atol=1e-6)


def test_channels_of_zeros_keep_their_size() -> None:
    assert torch.equal(factors_of(torch.zeros(3), 1.0), torch.ones(3))
    assert factors_of(torch.tensor([0.0, 2.0, 8.0]), 1.0).tolist() == pytest.approx([1, 0.5, 2])


PER_TENSOR = {"weights": {"bits": 4, "granularity": "per_tensor"}, "activations": {"bits": 4}}
EIGHT = {"weights": {"bits": 4}, "activations": {"bits": 8}}
SAID = {"weights": {"bits": 4}, "activations": {"bits": 4, "range": "mse"}}


@pytest.mark.parametrize(
    ("net", "section"),
    [
        (Net(activation="relu6"), FOUR_BITS),
        (Net(groups=1), FOUR_BITS),
        (Net(reads_twice=True), FOUR_BITS),
        (Net(), PER_TENSOR),
        (Net(), SAID),
        (Net(), {**FOUR_BITS, "activations": {"bits": 4, "place": "layer_inputs"}}),
        (Net(), EIGHT),
    ],
    ids=[
        "relu6",
        "mixes_channels",
        "read_twice",
        "per_tensor",
        "range_is_said",
        "layer_inputs",
        "eight_bits",
    ],
)
def test_what_it_does_not_suit_stays(net: Net, section: Mapping[str, object]) -> None:
    model = calibrated(net, section)
    before = {key: value.clone() for key, value in model.state_dict().items() if key[0] != "_"}
    assert equalize(model, Inputs.of(images())) == []
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if isinstance(v, Tensor))


def test_a_gain_that_is_only_noise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtool.post_training.equalization.MARGIN", 0.999)
    assert equalize(calibrated(Net()), Inputs.of(images())) == []


def test_a_weight_that_is_shared_stays_with_the_other_layer() -> None:
    net = Net()
    kept = net.depthwise.weight
    before = kept.detach().clone()
    assert equalize(calibrated(net), Inputs.of(images()))
    assert torch.equal(kept, before)


@torch.no_grad()
@pytest.mark.parametrize("saturation", ["allow", "avoid"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_converted_network_is_nearer_to_the_float_one(
    saturation: str, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*, equalizes: bool) -> float:
        model = calibrated(Net(norm=norm))
        wanted = float_outputs(model)
        if not equalizes:
            monkeypatch.setattr(improving, "equalize", lambda model, inputs: [])
        saturates = "avoid" if saturation == "avoid" else "allow"
        done = improve(model, [images()], saturation=saturates).applied
        assert any(row.step == "equalization" for row in done) is equalizes
        integer = qtool.convert(model)
        return float((integer(images()) - wanted).square().mean())

    assert error(equalizes=True) < 0.8 * error(equalizes=False)


def test_the_range_of_the_value_is_set_anew() -> None:
    model = calibrated(Net())
    quantizer = model.get_submodule("sites.relu0")
    assert isinstance(quantizer, ActivationQuantizer)
    before = float(quantizer.scale)
    equalize(model, Inputs.of(images()))
    assert float(quantizer.scale) != before

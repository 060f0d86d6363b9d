"""Weights at other widths: their errors make up for each other in what the layer gives."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.bits import rounded
from qtool.bits.rounded import compensated_weights
from qtool.bits.sensitivity import Shown, measure
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import prepare
from qtool.settings.quantization import widths_of
from qtool.settings.tensors import WeightQuantization

WEIGHTS = WeightQuantization.model_validate({"bits": 4})
WIDTHS = [2, 3, 8]


class Net(nn.Module):
    """A convolution, and a linear layer that is called twice: [B, 3, 8, 8] to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.twice = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.head(self.twice(self.twice(x).relu()).relu())


@pytest.fixture
def given() -> tuple[nn.Module, nn.Module, Tensor]:
    """Return a network, the same prepared, and images whose pixels go together."""
    torch.manual_seed(0)
    net = Net().eval()
    images = F.interpolate(torch.randn(32, 3, 3, 3), 8, mode="bilinear").abs()
    quantization = {"weights": {"bits": 4}, "activations": None}
    return net, prepare(net, quantization, images[:2]).eval(), images


@torch.no_grad()
def test_the_error_of_the_output_is_less_than_by_rounding_to_nearest(
    given: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    net, model, images = given
    before = {name: value.clone() for name, value in model.state_dict().items()}
    widths = {name: widths_of(WEIGHTS, WIDTHS) for name in ("conv", "twice", "head")}
    made = compensated_weights(model, images, widths)
    assert set(made) == {(name, bits) for name in ("conv", "head") for bits in WIDTHS}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    conv, layer = net.get_submodule("conv"), quant_layers(model)["conv"]
    assert isinstance(conv, nn.Conv2d)
    exact = conv(images)
    for bits in WIDTHS:
        weight = made["conv", bits]
        assert weight.shape == conv.weight.shape
        assert all(len(row.unique()) < 2**bits for row in weight.flatten(1))
        nearest = rounded.fitted(layer, widths["conv"][bits])(conv.weight)
        errors = [
            (F.conv2d(images, w, conv.bias) - exact).square().mean() for w in (weight, nearest)
        ]
        assert errors[0] < (0.6 if bits < 8 else 1.01) * errors[1]


@torch.no_grad()
def test_what_was_made_is_what_is_measured(given: tuple[nn.Module, nn.Module, Tensor]) -> None:
    net, model, images = given
    shown = Shown.of(net, [(images, torch.arange(32) % 4)], F.cross_entropy)
    widths = {name: widths_of(WEIGHTS, [2]) for name in ("conv", "head")}
    made = compensated_weights(model, images, widths)
    found = measure(model, shown, widths, ["alone"], made)
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    x = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    seen: list[Tensor] = []
    exact = net(images)
    x.remove()
    y = F.linear(seen[0], made["head", 2], head.bias)
    y = y + (exact - y).mean(0)
    error = (y - exact).square().sum() / (exact - exact.mean(0)).square().sum()
    assert found.alone[1, 2].error == pytest.approx(float(error), rel=1e-4)


def test_none_are_made_where_they_would_not_fit(
    given: tuple[nn.Module, nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, images = given
    monkeypatch.setattr(rounded, "LARGEST_KEPT", 100)
    assert compensated_weights(model, images, {"conv": widths_of(WEIGHTS, WIDTHS)}) == {}

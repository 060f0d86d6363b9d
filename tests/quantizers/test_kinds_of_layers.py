"""Convolutions of every kind are fake-quantized: each output channel of a weight has its scale."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import QUANT_TYPES, plain_type, quant_layers

# kind -> a layer with 4 channels in and 6 out, and what it takes
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), (9,)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (6, 5)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2, stride=2), (4, 4, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (5,)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 3)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 2, output_padding=0), (2, 3, 3)),
    "depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4), (4, 3)),
}
kinds = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, size = LAYERS[kind]
    return make(), torch.randn(2, 4, *size)


def prepared(layer: nn.Module, x: Tensor, **weights: object) -> nn.Module:
    settings: dict[str, object] = {"weights": {"bits": 4, "range": {"name": "absmax"}} | weights}
    return qtool.prepare(layer, settings, x)


def of_channel(layer: nn.Module, channel: int) -> Tensor:
    """Return which elements of a weight make one output channel: those it has a gradient from."""
    size = torch.randn(1, layer.in_channels, *[6] * len(layer.stride))
    (gradient,) = torch.autograd.grad(layer(size)[:, channel].sum(), layer.weight)
    return gradient != 0


@kinds
def test_each_output_channel_is_rounded_in_steps_of_its_own_largest_weight(kind: str) -> None:
    layer, x = made(kind)
    expected = layer.weight.detach().clone()
    for channel in range(layer.out_channels):
        mine = of_channel(layer, channel)
        step = expected[mine].abs().max() / 7
        expected[mine] = (expected[mine] / step).round() * step
    model = prepared(layer, x)
    assert torch.allclose(model.weight_quantizer(model.weight), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        layer.weight.copy_(expected)
        assert torch.allclose(model(x), layer(x), rtol=0, atol=1e-5)


@kinds
def test_a_weight_in_one_step_and_its_gradient(kind: str) -> None:
    layer, x = made(kind)
    model = prepared(layer, x, granularity="per_tensor", estimator="straight_through")
    step = layer.weight.detach().abs().max() / 7
    assert torch.allclose(model.weight_quantizer.scale, step)
    model(x).sum().backward()
    with torch.no_grad():
        layer.weight.copy_((layer.weight / step).round() * step)
    layer(x).sum().backward()
    assert torch.allclose(model.weight.grad, layer.weight.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize("range_", ["mse", "percentile", "ppq", "he_uniform", "learned", "dorefa"])
def test_every_range_scales_a_transposed_weight_as_it_does_its_transpose(range_: str) -> None:
    torch.manual_seed(1)
    layer, x = nn.ConvTranspose2d(3, 5, 3, bias=False), torch.randn(1, 3, 4, 4)
    plain = nn.Conv2d(3, 5, 3, bias=False)
    with torch.no_grad():
        plain.weight.copy_(layer.weight.transpose(0, 1))
    one, other = (prepared(m, x, range={"name": range_}, bits=3) for m in (layer, plain))
    one(x), other(x)
    assert torch.equal(one.weight_quantizer.scale, other.weight_quantizer.scale)
    given = one.weight_quantizer(one.weight).transpose(0, 1)
    assert torch.equal(given, other.weight_quantizer(other.weight))


@pytest.mark.parametrize(
    "more",
    [
        {"blend": {"name": "cubic", "start": 0.0, "stop": 1.0}},
        {"freezing": {"threshold": 0.01}},
        {"bits": 1},
        {"grid": "mid_rise"},
    ],
)
def test_a_transposed_weight_trains_as_its_transpose_does(more: dict[str, object]) -> None:
    torch.manual_seed(2)
    x = torch.randn(4, 3, 5, 5)
    layer, plain = nn.ConvTranspose2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():  # a transposed convolution of step 1 is one with its kernel turned
        plain.weight.copy_(layer.weight.transpose(0, 1).flip(2, 3))
        plain.bias.copy_(layer.bias)
    range_ = {} if "blend" in more else {"range": {"name": "learned"}}
    models = [prepared(m, x, **(range_ | more)) for m in (layer, plain)]
    losses = []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(4):
            qtool.set_progress(model, step / 4)
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-5)
    one, other = (m.weight_quantizer(m.weight).detach() for m in models)
    assert torch.allclose(one.transpose(0, 1).flip(2, 3), other, rtol=0, atol=1e-5)


def test_a_size_of_the_output_may_be_asked_for() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[2 * x.shape[2], 2 * x.shape[3]])

    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    section = {"weights": {"bits": 8}, "activations": {"bits": 8}}
    model = qtool.prepare(Up(), section, x)
    assert model(x).shape == (2, 2, 8, 10)
    integer = qtool.convert(model)
    assert torch.allclose(integer(x), model.eval()(x), rtol=0, atol=1e-2)


def test_a_state_from_before_such_layers_were_quantized_loads_and_leaves_them_float() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(2, 3, 6), nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(24, 2))
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "layer_inputs"}}
    older = qtool.prepare(
        net, section | {"overrides": [{"match": "0", "weights": None, "activations": None}]}, x
    )
    model = qtool.prepare(net, section, x)
    model.load_state_dict(older.state_dict())
    assert list(quant_layers(model)) == ["2"]
    assert "from before layers of its kind" in prepared_state(model).left_float["0"]
    assert torch.equal(model.eval()(x), older.eval()(x))


def test_a_kind_of_layer_is_told_by_what_it_does() -> None:
    class Halved(nn.ConvTranspose2d):
        def _output_padding(self, *args: object) -> list[int]:
            return [0, 0]

    assert plain_type(Halved(1, 1, 1)) is None
    assert len(QUANT_TYPES) == 7
    model = prepared(nn.Sequential(nn.Conv1d(2, 2, 1)), torch.randn(1, 2, 4))
    assert list(quant_layers(model)) == ["0"]

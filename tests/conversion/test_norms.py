"""Norms behind layers: folded where they are a gain and a shift, else named with the reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import qtool
from qtool.integer.file import load_integer, read_about, save_integer
from qtool.quantizers.plan import plan
from tests.kit import evaluate_by_hand

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BOTH = {"weights": {"bits": 6}, "activations": {"bits": 8, "place": "layer_inputs"}}


class Handmade(nn.Module):
    """A norm of one's own, with eps in a buffer; its shift comes before its gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels) - 0.3)
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("mean", torch.randn(channels))
        self.register_buffer("eps", torch.tensor(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, 1, 1)
        x = x + self.bias.reshape(shape) - self.mean.reshape(shape)
        return x * (self.gain / torch.sqrt(1 + self.eps)).reshape(shape)


class Activated(nn.BatchNorm2d):
    """A batch norm that drops and activates, too, as timm's BatchNormAct2d."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Within(nn.Module):
    """A batch norm inside, of which more than a norm is made."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.slope = nn.BatchNorm2d(channels), nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(self.inner(x), self.slope)


class Wrapped(nn.Module):
    """A batch norm inside, and a factor beside it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.factor = nn.BatchNorm2d(channels), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor


FOLDED: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "without gamma and beta": lambda n: nn.BatchNorm2d(n, affine=False),
    "without momentum": lambda n: nn.BatchNorm2d(n, momentum=None),
    "of one's own": Handmade,
    "InstanceNorm2d with statistics": lambda n: nn.InstanceNorm2d(
        n, affine=True, track_running_stats=True
    ),
    "a batch norm inside another module": Wrapped,
}
KEPT: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "statistics of the batch": (
        lambda n: nn.BatchNorm2d(n, track_running_stats=False),
        "it uses the statistics of what it is given",
    ),
    "GroupNorm": (lambda n: nn.GroupNorm(2, n), "GroupNorm is not a gain and a shift"),
    "InstanceNorm2d": (nn.InstanceNorm2d, "it uses the statistics of what it is given"),
    "LayerNorm": (lambda n: nn.LayerNorm([n, 6, 6]), "LayerNorm is not a gain and a shift"),
}


class Net(nn.Module):
    """Two convolutions, a norm behind each, and a head."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.norm2(self.conv2(x)).relu().mean((2, 3)))


def lively(net: nn.Module) -> nn.Module:
    """Give what norms hold values of their own, of either sign; return the net for inference."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in net.named_parameters():
        if "norm" in name and tensor.ndim == 1:
            nn.init.normal_(tensor, generator=generator)
    for tensor in net.buffers():
        if tensor.is_floating_point() and tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 2, generator=generator)
    return net.eval()


def converted(net: nn.Module, images: Tensor = IMAGES) -> tuple[nn.Module, nn.Module]:
    model = qtool.prepare(net, BOTH, images).eval()
    qtool.round_biases(model)
    return model, qtool.convert(model)


def assert_right(net: nn.Module, model: nn.Module, integer: nn.Module, x: Tensor = IMAGES) -> None:
    expected = evaluate_by_hand(net, model, x)
    room = 0.05 * float(expected.std())  # a code of the head on a threshold moves .02
    torch.testing.assert_close(integer(x).double(), expected, rtol=0, atol=room)


@pytest.mark.parametrize("name", FOLDED)
def test_a_gain_and_a_shift_are_folded_whatever_computes_them(name: str) -> None:
    torch.manual_seed(0)
    net = lively(Net(FOLDED[name]))
    model, integer = converted(net)
    assert [spec.batch_norm for spec in integer.qtool.layers] == ["norm1", "norm2", None]
    assert integer.qtool.not_folded == {}
    assert_right(net, model, integer)


@pytest.mark.parametrize(
    ("build", "inner"),
    [
        (Within, "inner"),
        (lambda n: Activated(n, nn.Identity()), "own_norm"),
        (lambda n: Activated(n, nn.ReLU()), "own_norm"),
    ],
    ids=["a norm inside", "a subclass that activates nothing", "a subclass that activates"],
)
def test_of_a_module_that_is_more_than_a_norm_the_norm_inside_is_folded(
    build: Callable[[int], nn.Module], inner: str
) -> None:
    torch.manual_seed(0)
    net = lively(Net(build))
    model, integer = converted(net)
    norms = [f"norm1.{inner}", f"norm2.{inner}", None]
    assert [spec.batch_norm for spec in integer.qtool.layers] == norms
    assert integer.qtool.not_folded == {}
    assert_right(net, model, integer)


@pytest.mark.parametrize("name", KEPT)
def test_any_other_norm_stays_and_is_named(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, reason = KEPT[name]
    net = lively(Net(build))
    model, integer = converted(net)
    assert [spec.batch_norm for spec in integer.qtool.layers] == [None] * 3
    assert list(integer.qtool.not_folded) == ["norm1", "norm2"]
    assert reason in integer.qtool.not_folded["norm1"]
    assert any("norm1" in note and reason in note for note in integer.qtool.notes)
    assert reason in model.qtool.not_folded["norm2"]
    assert reason in next(row.note for row in plan(model) if row.name == "conv2")
    assert_right(net, model, integer)

    save_integer(integer, tmp_path / "m.safetensors", {})
    assert read_about(tmp_path / "m.safetensors")[1].not_folded == integer.qtool.not_folded
    again = load_integer(tmp_path / "m.safetensors", net)
    assert torch.equal(again(IMAGES), integer(IMAGES))


class Flow(nn.Module):
    """Parts that `flow` connects."""

    def __init__(self, flow: Callable[["Flow", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.norm, self.free = nn.BatchNorm2d(6), nn.LayerNorm(6)
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x).mean((2, 3))


def written_to(net: Flow, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :2] = 1.0
    return net.norm(y)


def written_through_a_view(net: Flow, x: Tensor) -> Tensor:
    y = net.conv(x)
    part = y.view(-1, 36)
    part.mul_(0.5)
    return net.norm(y)


def written_by_out(net: Flow, x: Tensor) -> Tensor:
    y = net.conv(x)
    torch.mul(y, 2.0, out=y) if not y.requires_grad else y.mul_(2.0)
    return net.norm(y)


def by_a_function(net: Flow, x: Tensor) -> Tensor:
    assert net.norm.running_mean is not None
    assert net.norm.running_var is not None
    return F.batch_norm(net.conv(x), net.norm.running_mean, net.norm.running_var)


CONNECTED: dict[str, tuple[Callable[[Flow, Tensor], Tensor], str, str]] = {
    "others read": (
        lambda net, x: net.norm(y := net.conv(x)) + y,
        "norm",
        "others read the output of conv, too",
    ),
    "called twice": (
        lambda net, x: net.norm(net.other(net.norm(net.conv(x)))),
        "norm",
        "is called 2 times in a pass",
    ),
    "only in training": (
        lambda net, x: net.norm(net.conv(x)) if net.training else net.conv(x),
        "norm",
        "no forward pass in evaluation mode calls this norm",
    ),
    "behind a sum": (
        lambda net, x: net.norm(net.conv(x) + 1),
        "norm",
        "what it reads is not the output of a quantized layer",
    ),
    "a function": (
        by_a_function,
        "batch_norm after conv",
        "a function normalizes the output of conv",
    ),
    "a part is written": (written_to, "norm", "not the output of a quantized layer"),
    "written through a view": (written_through_a_view, "norm", "not the output of a quantized"),
    "written by out": (written_by_out, "norm", "not the output of a quantized layer"),
    "its gamma is read": (
        lambda net, x: net.norm(net.conv(x)) * net.norm.weight.abs().max(),
        "norm",
        "the model reads its parameters without calling it",
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CONNECTED)
def test_a_norm_that_is_not_alone_stays_and_is_named(name: str, training: bool) -> None:
    torch.manual_seed(0)
    flow, norm, reason = CONNECTED[name]
    net = lively(Flow(flow)).train(training)
    model, integer = converted(net)
    assert reason in integer.qtool.not_folded[norm]
    assert all(spec.batch_norm is None for spec in integer.qtool.layers)
    assert_right(net, model, integer)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_axis_of_a_norm_is_compared_with_that_of_the_layer(channels_last: bool) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.norm(x.flatten(0, 1)) if channels_last else self.norm(x)

    torch.manual_seed(0)
    net, x = lively(Tokens()), torch.randn(3, 7, 5)
    model, integer = converted(net, x)
    assert integer.qtool.layers[0].batch_norm is None
    said = integer.qtool.not_folded["norm"]
    assert ("not the output of" if channels_last else "another axis of [3, 7, 7]") in said
    assert_right(net, model, integer, x)


def test_a_full_grid_that_cannot_be_negated_is_named() -> None:
    net = lively(Net(nn.BatchNorm2d))
    quantization = {
        "weights": {"bits": 4, "grid": "full"},
        "activations": {"bits": 8, "place": "layer_inputs"},
    }
    model = qtool.prepare(net, quantization, IMAGES).eval()
    model.get_parameter("norm1.weight").data.fill_(-1.0)
    model.get_parameter("conv1.weight_quantizer.scale").data.fill_(0.01)
    integer = qtool.convert(model)
    assert list(integer.qtool.not_folded) == ["norm1"]
    assert (
        "conv1 holds -8 in a channel whose batch norm has a negative gamma"
        in (integer.qtool.not_folded["norm1"])
    )

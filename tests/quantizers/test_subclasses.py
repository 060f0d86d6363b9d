"""Layers of a subclass with a forward of its own: quantized where it is seen to do the same."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.quantizers.layers import QuantConv2d, QuantLinear, quant_layers

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SECTION = {"weights": {"bits": 4}, "activations": {"bits": 8}}


class Cast(nn.Linear):
    """A linear layer for other precisions, as timm has it."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == torch.float16:
            return F.linear(input, self.weight.half(), None)
        return F.linear(input, self.weight, bias=self.bias)


class Spelled(nn.Conv2d):
    """A convolution, spelled out."""

    def forward(self, x: Tensor) -> Tensor:
        given = {"stride": self.stride, "padding": list(self.padding), "groups": self.groups}
        return F.conv2d(x, self.weight, self.bias, **given)


class Noisy(nn.Conv2d):
    """Does more in training."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y + 0.1 * torch.randn_like(y) if self.training else y


class Wider(nn.Conv2d):
    """Leaves out its padding."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class Inner(nn.Conv2d):
    """Computes with its own weight whatever it is told to."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding)


def net(kind: type[nn.Conv2d] = Spelled, head: type[nn.Linear] = Cast) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        kind(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(8, 3),
    )  # fmt: skip


def plain() -> nn.Sequential:
    return net(nn.Conv2d, nn.Linear)


def trained(model: nn.Module) -> nn.Module:
    """Take three steps."""
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(IMAGES).square().sum().backward()
        optimizer.step()
    return model.eval()


def test_a_forward_that_does_the_same_is_quantized_as_the_plain_layer_is() -> None:
    model, expected = (trained(qtool.prepare(n, SECTION, IMAGES)) for n in (net(), plain()))
    assert list(quant_layers(model)) == ["0", "3", "6"]
    assert (isinstance(model[0], Spelled), isinstance(model[0], QuantConv2d)) == (True, True)
    assert (isinstance(model[6], Cast), isinstance(model[6], QuantLinear)) == (True, True)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert torch.equal(model(IMAGES), expected(IMAGES))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IMAGES), expected(IMAGES))
    integer = qtool.convert(model, [IMAGES])
    assert torch.equal(integer(IMAGES), qtool.convert(expected, [IMAGES])(IMAGES))
    assert integer.qtool.left_float == {}


def test_it_becomes_a_file(tmp_path: Path) -> None:
    integer = qtool.convert(qtool.prepare(net(), SECTION, IMAGES).eval(), [IMAGES])
    made = qtool.export_onnx(integer, IMAGES, tmp_path / "net.onnx")
    assert [layer["integer_kernel"] for layer in made["layers"]] == [True, True, True]


def test_a_model_that_was_given_keeps_its_types_and_attributes() -> None:
    given = net()
    before = vars(given[0]).keys()
    qtool.prepare(given, SECTION, IMAGES)
    assert type(given[0]) is Spelled
    assert vars(given[0]).keys() == before


@pytest.mark.parametrize("kind", [Noisy, Wider, Inner])
def test_a_forward_that_does_anything_else_stays_float(kind: type[nn.Conv2d]) -> None:
    model = qtool.prepare(net(kind), SECTION, IMAGES)
    assert list(quant_layers(model)) == ["3", "6"]
    assert model.qtool.left_float == {"0": f"{kind.__name__} is a subclass that may differ"}


def test_a_forward_of_one_layer_alone_stays_as_it_is() -> None:
    given = net()
    given[6].forward = lambda x: F.linear(x, given[6].weight, given[6].bias)
    with pytest.raises(ValueError, match="forward was replaced"):
        qtool.prepare(given, SECTION, IMAGES)


def test_a_state_in_which_such_layers_are_float_leaves_them_float() -> None:
    section = SECTION | {"activations": {"bits": 8, "place": "layer_inputs"}}
    floats = [{"match": ["0", "6"], "weights": None, "activations": None}]
    older = trained(qtool.prepare(net(), section | {"overrides": floats}, IMAGES))
    model = qtool.prepare(net(), section, IMAGES)
    model.load_state_dict(older.state_dict())
    assert torch.equal(model.eval()(IMAGES), older(IMAGES))
    assert set(model.qtool.left_float) == {"0", "6"}
    assert set(qtool.convert(model, [IMAGES]).qtool.left_float) == {"0", "6"}


def test_without_an_example_nothing_is_seen() -> None:
    section = SECTION | {"activations": {"bits": 8, "place": "layer_inputs"}}
    assert list(quant_layers(qtool.prepare(net(), section))) == ["3"]

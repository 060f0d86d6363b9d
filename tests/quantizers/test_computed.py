"""Layers that compute their weight in each pass: what they compute is quantized, and trains."""

import copy
import pickle
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.integer.layers import integer_layers
from qtool.quantizers.layers import quant_layers

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SECTION = {
    "weights": {"bits": 4, "range": {"name": "absmax"}},
    "activations": {"bits": 8, "place": "layer_inputs"},
}


class Standardized(nn.Conv2d):
    """A convolution with a standardized weight and a gain, as networks without norms have it."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, self.out_channels, -1)
        weight = F.batch_norm(self.weight.reshape(shape), None, None, training=True, momentum=0.0)
        weight = weight.reshape_as(self.weight) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Padded(Standardized):
    """Pads its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Dynamic(nn.Conv2d):
    """Makes its weight of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * x.mean().exp()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def net(kind: type[nn.Conv2d] = Standardized) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        kind(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def standardized(layer: nn.Module) -> Tensor:
    """Return the weight that a layer computes, by its formula."""
    rows = layer.weight.flatten(1)
    spread = (rows.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return ((rows - rows.mean(1, keepdim=True)) / spread).view_as(layer.weight) * layer.gain


def test_what_a_layer_computes_is_rounded_and_its_parts_train() -> None:
    weights = {"bits": 4, "range": {"name": "absmax"}, "estimator": "identity"}
    model = qtool.prepare(net(), {"weights": weights}, IMAGES).eval()
    layer = model[0]
    assert list(quant_layers(model)) == ["0", "3"]
    assert {"0.weight", "0.gain", "0.bias"} <= model.state_dict().keys()
    weight = standardized(layer)
    step = weight.detach().flatten(1).abs().amax(1).reshape(-1, 1, 1, 1) / 7
    rounded = weight + ((weight / step).round() * step - weight).detach()  # straight through
    expected = F.conv2d(IMAGES, rounded, layer.bias, padding=1)
    given = layer(IMAGES)
    assert torch.allclose(given, expected, rtol=0, atol=1e-5)
    parts = (layer.weight, layer.gain, layer.bias)
    wanted = torch.autograd.grad(expected.square().sum(), parts)
    found = torch.autograd.grad(given.square().sum(), parts)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "place", ["every_value", pytest.param("layer_inputs", marks=pytest.mark.slow)]
)
def test_a_trained_network_becomes_integers_and_a_file(place: str, tmp_path: Path) -> None:
    activations = {"bits": 8, "place": place}
    model = qtool.prepare(net(), SECTION | {"activations": activations}, IMAGES)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(IMAGES).square().sum().backward()
        optimizer.step()
    model.eval()
    integer = qtool.convert(model, [IMAGES], saturation="avoid")
    layer = integer_layers(integer)["0"]
    weight = standardized(model[0]).detach()
    step = model[0].weight_quantizer.scale  # of the weight before the last step
    sign = torch.where(model[1].weight < 0, -1, 1).reshape(-1, 1, 1, 1)
    assert torch.equal(layer.codes.float(), (weight / step).round().clamp(-7, 7) * sign)
    assert layer.spec.batch_norm == "1"
    torch.testing.assert_close(integer(IMAGES), model(IMAGES), rtol=0, atol=0.05)
    qtool.export_onnx(integer, IMAGES, tmp_path / "m.onnx")
    (given,) = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"images": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), integer(IMAGES), rtol=0, atol=1e-5)


def test_copies_and_pickles_compute_their_weight_still() -> None:
    model = qtool.prepare(net(), SECTION, IMAGES).eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IMAGES), model(IMAGES))
        with torch.no_grad():
            twin[0].gain.mul_(2)
        assert torch.allclose(twin[0].whole_weight, 2 * model[0].whole_weight)
    again = qtool.prepare(net(), SECTION, IMAGES)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(IMAGES), model(IMAGES))


def test_a_blend_that_is_done_freezes_all_that_the_weight_is_made_of() -> None:
    blend = {
        "bits": 4,
        "range": {"name": "absmax"},
        "blend": {"name": "linear", "start": 0.0, "stop": 1.0},
    }
    model = qtool.prepare(net(), {"weights": blend}, IMAGES)
    model(IMAGES)
    qtool.set_progress(model, 1.0)
    layer = model[0]
    assert not (layer.weight.requires_grad)
    assert not (layer.gain.requires_grad)
    assert layer.bias.requires_grad
    codes = layer.weight_quantizer(layer.whole_weight) / layer.weight_quantizer.scale
    assert torch.allclose(codes, codes.round(), rtol=0, atol=1e-4)


def test_channels_that_could_saturate_are_rounded_anew() -> None:
    weights = {"bits": 8, "range": {"name": "absmax"}}
    model = qtool.prepare(net(), SECTION | {"weights": weights}, IMAGES).eval()
    integer = qtool.convert(model, [IMAGES], saturation="avoid")
    spec = integer_layers(integer)["0"].spec
    assert spec.fewer_steps > 0
    torch.testing.assert_close(integer(IMAGES), model(IMAGES), rtol=0, atol=0.05)
    assert isinstance(model[0].whole_weight, Tensor)  # it is not changed


@pytest.mark.parametrize("kind", [Padded, Dynamic])
def test_what_is_no_plain_layer_with_such_a_weight_is_left_float(kind: type[nn.Conv2d]) -> None:
    model = qtool.prepare(net(kind), SECTION, IMAGES)
    assert list(quant_layers(model)) == ["3"]
    why = f"{kind.__name__} computes the weight that it gives to conv2d anew in each pass"
    assert model.qtool.left_float == {"0": why}

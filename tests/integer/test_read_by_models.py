"""Models that look at weights and sizes of their layers work as integer models, and exported."""

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.graph.by_function import called_layers
from qtool.integer.layers import integer_layers

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Curious(nn.Module):
    """Asks its layers for types, devices, shapes and sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv.weight.dtype).to(device=self.conv.weight.device)
        x = self.conv(x) * self.conv.weight.shape[0] / self.conv.out_channels
        x = F.pad(x, (0, self.up.stride[0] - 2, 0, self.up.kernel_size[1] - 2))
        x = self.up(x).reshape(len(x), self.up.out_channels, -1).mean(2)
        assert self.head.weight.is_floating_point()
        return self.head(x.to(dtype=self.head.weight.dtype)) + self.head.in_features - 4


@pytest.mark.parametrize(
    "place", ["every_value", pytest.param("layer_inputs", marks=pytest.mark.slow)]
)
def test_a_model_may_ask_its_layers_what_they_are(place: str, tmp_path: Path) -> None:
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": place}}
    model = qtool.prepare(Curious(), section, IMAGES).eval()
    assert model.qtool.left_float == {}
    integer = qtool.convert(model)
    made = integer(IMAGES)
    torch.testing.assert_close(made, model(IMAGES), rtol=0, atol=0.05)
    qtool.export_onnx(integer, IMAGES, tmp_path / "m.onnx")
    (given,) = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"images": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), made, rtol=0, atol=1e-5)


def test_the_weight_of_an_integer_layer_is_its_codes_times_their_scales() -> None:
    model = qtool.prepare(Curious(), {"weights": {"bits": 4}}, IMAGES).eval()
    layers = integer_layers(qtool.convert(model))
    columns = {"conv": (-1, 1, 1, 1), "up": (1, -1, 1, 1), "head": (-1, 1)}
    for name, shape in columns.items():
        layer, latent = layers[name], model.get_submodule(name)
        expected = layer.codes.float() * layer.weight_scale.reshape(shape)
        assert torch.equal(layer.weight, expected)
        assert torch.equal(layer.weight, latent.weight_quantizer(latent.weight))


class Given(nn.Module):
    """Gives a layer's weight to a function instead of calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3)).to(self.head.weight.dtype)
        return F.linear(x, self.head.weight, self.head.bias)


def test_a_layer_whose_weight_a_model_gives_to_a_function_is_called() -> None:
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "layer_inputs"}}
    model = qtool.prepare(Given(), section, IMAGES).eval()
    assert called_layers(model) == {"": ["head"]}
    integer = qtool.convert(model)
    head, seen = integer_layers(integer)["head"], []
    head.register_forward_hook(lambda module, args, made: seen.append(made))
    assert torch.equal(integer(IMAGES), seen[0])
    torch.testing.assert_close(seen[0], model(IMAGES), rtol=0, atol=0.05)

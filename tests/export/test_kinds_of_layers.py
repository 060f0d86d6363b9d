"""Convolutions of every kind in a file: the codes and outputs of the integer model, to the bit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.export.proof.gate import check_codes
from qtool.export.proof.why_slow import Known, kernels_of
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.integer.converted import converted_state
from qtool.integer.file import load_integer, save_integer
from qtool.integer.layers import integer_layers

SIZES = {1: (8,), 2: (4, 6), 3: (2, 4, 4)}


def net(dimensions: int, groups: int) -> nn.Sequential:
    """Return a convolution, one that is transposed, and one more, with norms of both signs."""
    torch.manual_seed(dimensions)
    conv = getattr(nn, f"Conv{dimensions}d")
    up, norm = (getattr(nn, f"{n}{dimensions}d") for n in ("ConvTranspose", "BatchNorm"))
    model = nn.Sequential(
        conv(3, 8, 3, padding=1), norm(8), nn.ReLU(),
        up(8, 8, 2, stride=2, groups=groups, bias=False), norm(8), nn.ReLU(),
        conv(8, 4, 1), nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.uniform_(module.bias)
    return model


def converted(dimensions: int, groups: int, place: str) -> tuple[nn.Module, Tensor]:
    x = torch.randn(4, 3, *SIZES[dimensions], generator=torch.Generator().manual_seed(0))
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": place}}
    model = qtool.prepare(net(dimensions, groups), section, x)
    return qtool.convert(model.eval(), [x]), x


@pytest.mark.parametrize(
    ("dimensions", "groups", "place"),
    [
        pytest.param(1, 1, "every_value", marks=pytest.mark.slow),
        pytest.param(1, 2, "layer_inputs", marks=pytest.mark.slow),
        (2, 2, "every_value"),
        pytest.param(2, 1, "every_value", marks=pytest.mark.slow),
        pytest.param(2, 8, "layer_inputs", marks=pytest.mark.slow),
        pytest.param(3, 2, "every_value", marks=pytest.mark.slow),
    ],
)
def test_a_file_holds_and_computes_what_the_integer_model_does(
    dimensions: int, groups: int, place: str, tmp_path: Path
) -> None:
    integer, x = converted(dimensions, groups, place)
    path, runtime = tmp_path / "model.onnx", OnnxRuntime()
    made = qtool.export_onnx(integer, x, path)
    assert not converted_state(integer).not_folded
    up = made["layers"][1]
    assert (up["kind"], up["batch_norm"]) == (f"ConvTranspose{dimensions}d", "4")
    # the file has one table, for layers this small pay for no other: it holds the largest code
    largest = max(int(layer.codes.abs().max()) for layer in integer_layers(integer).values())
    bits = (2 * largest).bit_length()
    assert up["packed_bytes"] == 8 * 8 * 2**dimensions // groups * bits // 8
    codes = {layer["name"]: layer["codes"] for layer in made["layers"]}
    assert check_codes(path, integer, codes, runtime) == sum(
        layer.codes.numel() for layer in integer_layers(integer).values()
    )
    session = ort.InferenceSession(str(path))
    (given,) = session.run(None, {"images": x.numpy()})
    np.testing.assert_allclose(given, integer(x).numpy(), rtol=0, atol=1e-5)
    state = converted_state(integer)
    found = kernels_of(path, runtime.optimized(onnx.load(str(path))), runtime, Known.of(state))
    if place == "every_value":  # the transposed one alone has no kernel on integers
        (slow,) = found.why_slow
        assert (slow.operator, slow.name, slow.by_design) == ("ConvTranspose", "3", True)
        assert "no kernel on integers" in slow.reason
        assert found.layers >= {"0", "6"}


class Pools(nn.Module):
    """Poolings of every kind, sums, and norms that are not folded."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        torch.manual_seed(dimensions)

        def named(name: str) -> type[nn.Module]:
            return getattr(nn, f"{name}{dimensions}d")

        self.stem, self.side = named("Conv")(3, 8, 3, padding=1), named("Conv")(8, 8, 1)
        self.halved, self.mean = named("MaxPool")(2), named("AvgPool")(2, padding=1)
        self.norm, self.conv = named("BatchNorm")(8), named("Conv")(8, 8, 1)
        self.two, self.one = named("AdaptiveAvgPool")(2), named("AdaptiveAvgPool")(1)
        self.head = nn.Linear(8, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mean(self.halved(self.stem(x).relu()))
        x = self.conv(self.norm(x + self.side(x)))
        return self.head(self.one(self.side(self.two(x))).flatten(1))


@pytest.mark.parametrize("dimensions", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_poolings_and_norms_of_any_dimensions_are_integers(dimensions: int, tmp_path: Path) -> None:
    size = {1: (22,), 3: (6, 6, 22)}[dimensions]
    x = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
    integer = qtool.convert(qtool.prepare(Pools(dimensions), section, x).eval(), [x])
    path, runtime = tmp_path / "model.onnx", OnnxRuntime()
    qtool.export_onnx(integer, x, path)
    (given,) = ort.InferenceSession(str(path)).run(None, {"images": x.numpy()})
    np.testing.assert_allclose(given, integer(x).numpy(), rtol=0, atol=1e-5)
    state = converted_state(integer)
    found = kernels_of(path, runtime.optimized(onnx.load(str(path))), runtime, Known.of(state))
    assert (found.why_slow, state.float_sites) == ([], {})
    assert found.integer == found.quantizable


@pytest.mark.parametrize("size", [(6, 4, 2), (5, 4, 3), (3, 7, 5)])
def test_adaptive_windows_of_three_dimensions(size: tuple[int, ...], tmp_path: Path) -> None:
    """Alike, of two sizes in some dimensions, and side by side in one row."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    model = nn.Sequential(
        nn.Conv3d(3, 4, 1), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    integer = qtool.convert(qtool.prepare(model, {"weights": {"bits": 4}}, x).eval(), [x])
    path = tmp_path / "model.onnx"
    qtool.export_onnx(integer, x, path)
    (given,) = ort.InferenceSession(str(path)).run(None, {"images": x.numpy()})
    np.testing.assert_allclose(given, integer(x).numpy(), rtol=0, atol=1e-5)


def test_an_integer_file_holds_every_kind(tmp_path: Path) -> None:
    integer, x = converted(1, 2, "every_value")
    save_integer(integer, tmp_path / "integer.safetensors", {})
    again = net(1, 2)
    again(x)  # its last layer is lazy
    loaded = load_integer(tmp_path / "integer.safetensors", again)
    assert torch.equal(loaded(x), integer(x))

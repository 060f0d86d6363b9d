"""Weights that stay float beside quantized values: float in the runtime, too."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import qtool
from qtool.errors import ExportError
from qtool.export.proof import gate, unchanged
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing import written_weights
from qtool.integer.converted import converted_state
from qtool.integer.layers import integer_layers
from tests.kit import float_net

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FOUR: dict[str, Any] = {"bits": 4}
AT_RELUS: dict[str, Any] = {"bits": 4, "place": "relu_outputs", "grid": "unsigned"}


class Pooled(nn.Module):
    """ReLUs whose outputs reach the next layer through a pooling, a padding and a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, bias=False), nn.ReLU()
        self.fc1, self.relu3, self.fc2 = nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.relu2(self.conv2(nn.functional.pad(x, (1, 1, 1, 1))))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


class Tokens(nn.Module):
    """Linear layers on [B, T, F], which are matrix products in ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.down(self.up(x).relu()).relu().mean(1))


def narrow() -> nn.Module:
    """One feature between two layers: an input without two channels to have scales of their own."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 6),
        nn.ReLU(), nn.Linear(6, 5),
    )  # fmt: skip


def with_unfolded_norms() -> nn.Module:
    """On a full grid, codes of -8 where gamma is negative cannot be negated: no norm is folded."""
    net = float_net()
    for conv, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2)):
        with torch.no_grad():
            norm.weight[0] = -norm.weight[0].abs()
            conv.weight[0, 0, 0, 0] = -4 * conv.weight.abs().max()
    return net


def with_a_bias_beyond_int32() -> nn.Module:
    """Weights so small beside their bias that int32 cannot hold it in steps of their products."""
    first = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        first.weight.mul_(9e-7)
        first.bias = nn.Parameter(torch.full((4,), 5.0))
    return nn.Sequential(
        first, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )


def section(activations: Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """All weights of 4 bits, but for layers by their names."""
    found = [{"match": match, **what} for match, what in overrides.items()]
    inputs = {"place": "layer_inputs", **activations}
    return {"weights": FOUR, "activations": inputs, "overrides": found}


def with_weights(found: dict[str, Any], **weights: Any) -> dict[str, Any]:
    return found | {"weights": FOUR | weights}


class Doubled(nn.Module):
    """A float layer whose output is added to itself, and multiplied by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(x + x)
        return self.fc((x * x).mean((2, 3)))


FLOAT: dict[str, Any] = {"weights": None}
# name -> network, recipe section, the layers whose weights stay float or get a float factor
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], set[str]]] = {
    "activations only": (
        float_net,
        {"activations": FOUR | {"place": "layer_inputs"}},
        {"conv1", "conv2", "fc"},
    ),
    "one float layer": (float_net, section(FOUR, conv1=FLOAT), {"conv1"}),
    "unfolded norms": (
        with_unfolded_norms,
        with_weights(section(FOUR), grid="full"),
        {"conv1", "conv2"},
    ),
    "activations at ReLUs": (
        Pooled,
        {"activations": AT_RELUS},
        {"conv1", "conv2", "fc1", "fc2"},
    ),
    "a float layer after a pooling": (Pooled, section(AT_RELUS, conv2=FLOAT), {"conv2"}),
    "tokens": (Tokens, section(FOUR, down=FLOAT), {"down"}),
    "added to itself": (Doubled, section(FOUR, conv1=FLOAT), {"conv1"}),
    "one feature": (
        narrow,
        {"activations": FOUR | {"place": "layer_inputs"}},
        {"1", "3", "5", "7"},
    ),
}


def converted(net: nn.Module, recipe: dict[str, Any]) -> nn.Module:
    model = qtool.prepare(net.eval(), recipe, IMAGES)
    qtool.calibrate(model, [IMAGES])
    qtool.round_biases(model.eval())
    return qtool.convert(model, [IMAGES])


@cache
def case(name: str) -> tuple[nn.Module, set[str]]:
    torch.manual_seed(0)
    make, recipe, floating = CASES[name]
    return converted(make(), recipe), floating


@torch.no_grad()
def outputs(integer: nn.Module) -> tuple[Tensor, float]:
    """Return a model's outputs, and how far float sums in another order move them."""
    expected = integer(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flags() speaks of Intel GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            return expected, float((integer(IMAGES) - expected).abs().max())


def constants(path: Path) -> list[np.ndarray[Any, Any]]:
    return [numpy_helper.to_array(item) for item in OnnxRuntime().optimized(path).initializer]


def times_the_norm(integer: nn.Module, name: str) -> np.ndarray[Any, Any]:
    """Return a layer's real weight, times gamma / sqrt(variance + eps) where its norm is there."""
    weight = integer_layers(integer)[name].real_weight().double()
    norm = dict(integer.named_modules()).get(name.replace("conv", "bn"))
    if not isinstance(norm, nn.BatchNorm2d):
        return weight.numpy()
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return (weight * factor.reshape(-1, 1, 1, 1)).detach().numpy()


QUICK = ("activations only", "one float layer", "unfolded norms", "a float layer after a pooling")


def listed(names: Iterable[str]) -> list[object]:
    """Return names as parameters; all but a few are slow."""
    return [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in names]


@pytest.mark.parametrize("name", listed(CASES))
def test_float_weights_stand_in_the_runtime_as_they_are_and_its_outputs_are_the_models(
    tmp_path: Path, name: str
) -> None:
    integer, floating = case(name)
    path = tmp_path / "m.onnx"
    qtool.export_onnx(integer, IMAGES, path)

    found = [array for array in constants(path) if array.dtype == np.float32]
    for layer in floating:
        weight = times_the_norm(integer, layer)
        exact = np.abs(weight - weight.astype(np.float32)).max() == 0  # no norm: the very bits
        near = [
            array if array.shape == weight.shape else array.T
            for array in found
            if array.size == weight.size and array.ndim == weight.ndim
        ]
        room = 0 if exact else 1e-6
        assert any(np.allclose(array, weight, rtol=room, atol=0) for array in near), layer
    expected, moved = outputs(integer)
    given = gate.run(OnnxRuntime().open(path), IMAGES)
    assert float((given - expected).abs().max()) <= max(1e-4 * float(expected.std()), 3 * moved)


def test_a_float_bias_beyond_int32_stays_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    integer = converted(
        with_a_bias_beyond_int32(),
        {"weights": {"bits": 8}, "activations": {"bits": 8, "place": "layer_inputs"}},
    )
    assert "0: its bias does not fit" in str(converted_state(integer).notes)
    qtool.export_onnx(integer, IMAGES, tmp_path / "m.onnx")

    bias = integer_layers(integer)["0"].bias
    assert bias is not None
    assert any(
        array.dtype == np.float32 and np.array_equal(array, bias.numpy())
        for array in constants(tmp_path / "m.onnx")
    )
    given = gate.run(OnnxRuntime().open(tmp_path / "m.onnx"), IMAGES)
    torch.testing.assert_close(given, integer(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("one float layer", "conv1: ONNX Runtime quantizes the float weight anew"),
        ("unfolded norms", "conv1: ONNX Runtime quantizes the float weight anew"),
    ],
)
def test_an_export_whose_weights_the_runtime_would_quantize_is_refused_by_the_layers_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, named: str
) -> None:
    monkeypatch.setattr(written_weights, "keep_float", lambda graph: None)

    with pytest.raises(ExportError, match=named):
        qtool.export_onnx(case(name)[0], IMAGES, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_network_without_float_layers_is_written_as_if_there_were_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    integer = converted(float_net(), section(FOUR))
    qtool.export_onnx(integer, IMAGES, tmp_path / "a.onnx")
    monkeypatch.setattr(written_weights, "keep_float", lambda graph: None)
    qtool.export_onnx(integer, IMAGES, tmp_path / "b.onnx")

    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_weights_of_another_model_are_not_what_was_proven(tmp_path: Path) -> None:
    integer, _ = case("one float layer")
    qtool.export_onnx(integer, IMAGES, tmp_path / "m.onnx")
    layers = integer_layers(deepcopy(integer))
    with torch.no_grad():
        layers["conv1"].codes[0, 0, 0, 0] += 1e-4

    with pytest.raises(ExportError, match="conv1: ONNX Runtime does not compute with the weights"):
        unchanged.check_weights(onnx.load(str(tmp_path / "m.onnx")), layers, OnnxRuntime())

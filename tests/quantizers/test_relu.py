"""Quantizers at the outputs of ReLUs: where they are put, and what they do there."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import qtool
from qtool.errors import RecipeError
from qtool.export.proof.gate import shifted_share
from qtool.integer.file import load_integer, save_integer
from qtool.integer.relu import IntegerReLU
from qtool.models.papers import MODELS
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import RANGES
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.places.relu_outputs import find_places
from qtool.quantizers.relu import QuantReLU, quant_relus

IMAGES = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def section(**activations: Any) -> dict[str, Any]:
    inputs = {"bits": 4, "place": "relu_outputs"} | activations
    return {"weights": {"bits": 4}, "activations": inputs}


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return MODELS["lenet5"](10, 1, 28).eval()


class Branches(nn.Module):
    """A ReLU with two readers, one whose output is averaged, and one that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.right, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head, self.relu, self.late = nn.Linear(4, 3), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = F.relu(self.left(x) + self.right(x))
        x = self.late(self.last(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_layer_reads_a_relu_also_through_pooling_and_flattening() -> None:
    layers = {"conv1", "conv2", "fc1", "fc2", "fc3"}
    places, calls = find_places(lenet(), layers, IMAGES)
    assert places == {
        "conv2": ("relu1", 0),
        "fc1": ("relu2", 0),
        "fc2": ("relu3", 0),
        "fc3": ("relu4", 0),
    }
    assert calls == {"relu1": 1, "relu2": 1, "relu3": 1, "relu4": 1}


def test_a_relu_that_is_called_twice_has_two_places() -> None:
    network = models.resnet18().eval()
    layers = {name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    places, calls = find_places(network, layers, torch.randn(1, 3, 32, 32))
    assert places["layer1.0.conv2"] == ("layer1.0.relu", 0)
    assert places["layer1.1.conv1"] == ("layer1.0.relu", 1)
    assert places["layer2.0.downsample.0"] == places["layer2.0.conv1"] == ("layer1.1.relu", 1)
    assert calls["layer1.0.relu"] == 2
    assert "conv1" not in places
    assert "fc" not in places  # an average lies on no grid


def test_sums_averages_and_functions_are_no_place() -> None:
    places, _ = find_places(
        Branches().eval(), {"stem", "left", "right", "last", "head"}, torch.randn(2, 1, 6, 6)
    )
    assert places == {"left": ("relu", 0), "right": ("relu", 0)}


def test_two_readers_share_one_quantizer_and_the_others_keep_their_own() -> None:
    model = qtool.prepare(Branches(), section(), torch.randn(2, 1, 6, 6))
    layers = quant_layers(model)
    assert list(quant_relus(model)) == ["relu"]
    assert layers["left"].quantizer_of_input is layers["right"].quantizer_of_input
    assert layers["left"].input_quantizer is None
    for name in ("stem", "last", "head"):
        assert layers[name].quantizer_of_input is layers[name].input_quantizer is not None
    assert sum(isinstance(m, ActivationQuantizer) for m in model.modules()) == 4


def test_readers_that_want_different_inputs_keep_their_own_quantizers() -> None:
    other = {"overrides": [{"match": "left", "activations": {"bits": 8}}]}
    model = qtool.prepare(Branches(), section() | other, torch.randn(2, 1, 6, 6))
    assert not quant_relus(model)
    assert sum(isinstance(m, ActivationQuantizer) for m in model.modules()) == 5


def test_the_places_cannot_be_found_without_an_example() -> None:
    with pytest.raises(ValueError, match="needs an example"):
        qtool.prepare(lenet(), section())


def test_only_unsigned_grids_are_relus() -> None:
    with pytest.raises(RecipeError, match=r"place: relu_outputs needs grid: auto or unsigned"):
        qtool.prepare(lenet(), section(grid="full"), IMAGES)


def ready_relu(**activations: Any) -> tuple[QuantReLU, ActivationQuantizer]:
    model = qtool.prepare(lenet(), section(**activations), IMAGES)
    relu = model.get_submodule("relu1")
    assert isinstance(relu, QuantReLU)
    quantizer = relu.quantizers[0]
    assert isinstance(quantizer, ActivationQuantizer)
    relu.calls = 0
    return relu, quantizer


@pytest.mark.parametrize("rule", ["learned", "absmax", "ema_min_max"])
def test_the_range_is_that_of_the_relus_output(rule: str) -> None:
    _, quantizer = ready_relu(range=rule)
    network = lenet()
    rectified = F.relu(network.get_submodule("conv1")(_first_input_rounded(rule)))
    expected = RANGES.build(rule)(rectified.reshape(1, -1), IntegerGrid(4, "unsigned"))
    assert quantizer.known_grid == IntegerGrid(4, "unsigned")
    np.testing.assert_allclose(quantizer.scale.detach(), expected[0].detach(), rtol=0.2)


def _first_input_rounded(rule: str) -> Tensor:
    """Return what the first convolution sees, nearly: its weights are rounded too."""
    scale = RANGES.build(rule)(IMAGES.reshape(1, -1), IntegerGrid(4, "full"))[0]
    return (IMAGES / scale).round().clamp(-8, 7) * scale


@pytest.mark.parametrize("rounding", ["half_to_even", "ceil"])
def test_the_forward_is_relu_and_rounding_in_one(rounding: str) -> None:
    relu, quantizer = ready_relu(rounding=rounding)
    x = torch.randn(200, generator=torch.Generator().manual_seed(1)) * 3
    s = quantizer.scale.detach().numpy()
    integers = {"half_to_even": np.rint, "ceil": np.ceil}[rounding]
    expected = np.clip(integers(np.maximum(x.numpy(), 0) / s), 0, 15) * s
    np.testing.assert_array_equal(relu(x).detach().numpy(), expected)


@pytest.mark.parametrize(
    ("estimator", "passes"),
    [("identity", [True, True, True]), ("clipped_relu", [False, True, False])],
)
def test_estimators_see_what_lies_below_zero(estimator: str, passes: list[bool]) -> None:
    relu, quantizer = ready_relu(estimator=estimator)
    top = float(quantizer.scale.detach()) * 15
    x = torch.tensor([-1.0, top / 2, top * 2], requires_grad=True)
    relu(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).tolist() == passes


def test_a_blend_and_noise_come_after_a_relu_of_their_own() -> None:
    blend = {"range": "absmax", "blend": {"name": "linear", "start": 0.0, "stop": 1.0}}
    for settings in (blend, {"rounding": "additive_noise"}):
        relu, _ = ready_relu(**settings)
        relu.train()
        x = torch.tensor([-5.0, -0.1], requires_grad=True)
        relu(x).sum().backward()
        assert x.grad is not None
        assert not x.grad.any()


def test_a_copy_reads_its_own_quantizer() -> None:
    model = copy.deepcopy(qtool.prepare(lenet(), section(), IMAGES))
    relu = model.get_submodule("relu1")
    assert isinstance(relu, QuantReLU)
    assert quant_layers(model)["conv2"].quantizer_of_input is relu.quantizers[0]


def test_state_goes_from_one_model_to_another() -> None:
    first = qtool.prepare(lenet(), section(), IMAGES)
    second = qtool.prepare(lenet(), section(), 3 * IMAGES)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_calibration_sets_the_ranges_at_relus_too() -> None:
    model = qtool.prepare(lenet(), section(range="absmax"), IMAGES)
    relu = model.get_submodule("relu1")
    assert isinstance(relu, QuantReLU)
    before = float(relu.quantizers[0].scale)
    qtool.calibrate(model, [5 * IMAGES])
    assert float(relu.quantizers[0].scale) > 2 * before


@pytest.mark.parametrize("rounding", ["half_to_even", "ceil"])
@pytest.mark.parametrize("name", ["lenet5", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_it_converts_saves_exports_and_runs(tmp_path: Path, name: str, rounding: str) -> None:
    torch.manual_seed(0)
    size = 16
    images = torch.randn(16, 1, size, size)
    model = qtool.prepare(MODELS[name](10, 1, size), section(rounding=rounding), images)
    for _ in range(3):  # batch norm statistics that are not those of the start
        model.train()(images)
    qtool.round_biases(model)
    expected = model.eval()(images).detach()
    integer = qtool.convert(model)
    given = integer(images)
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    save_integer(integer, tmp_path / "m.safetensors", {})
    loaded = load_integer(tmp_path / "m.safetensors", MODELS[name](10, 1, size))
    assert torch.equal(loaded(images), given)

    qtool.export_onnx(integer, images, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    assert isinstance(logits, np.ndarray)
    assert (logits.argmax(1) == given.numpy().argmax(1)).mean() >= 15 / 16


def test_a_shift_in_place_of_ceil_is_counted_at_relus() -> None:
    model = qtool.prepare(lenet(), section(rounding="ceil"), IMAGES)
    integer = qtool.convert(model)
    seen: list[Tensor] = []
    handle = integer.get_submodule("relu4").register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    share = shifted_share(integer, [(IMAGES, torch.zeros(4))])
    handle.remove()
    assert share is not None
    assert 0 <= share < 1e-3
    relu = integer.get_submodule("relu4")
    assert isinstance(relu, IntegerReLU)
    whole = torch.arange(1.0, 12.0) * relu.scales[0]  # exact multiples of the step, from 1 to 11
    odd = shifted_share(nn.Sequential(relu, Restart(relu)), [(whole, torch.zeros(1))])
    u = whole.numpy() / relu.scales[0].numpy()
    moved = (whole.numpy() + relu.scales[0].numpy() / 2) / relu.scales[0].numpy()
    assert odd == np.mean(np.clip(np.ceil(u), 0, 15) != np.clip(np.rint(moved), 0, 15)) > 0


class Restart(nn.Module):
    """Lets a ReLU that stands alone count its calls anew."""

    def __init__(self, relu: IntegerReLU) -> None:
        super().__init__()
        self.relu = (relu,)
        relu.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.relu[0].calls = 0
        return x

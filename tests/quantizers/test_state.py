"""The state of quantizers among what trainers do with a state_dict: average, save, cast, pickle."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import qtool
from qtool.integer.layers import integer_layers
from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.state import KINDS, QuantizerState, decode, encode
from tests.kit import float_net

LEARNED: dict[str, Any] = {
    "weights": {"bits": 4},
    "activations": {"bits": 8, "place": "layer_inputs"},
}
EACH: dict[str, dict[str, Any]] = {
    "learned": LEARNED,
    "followed, zero point": {
        "weights": {"bits": 4, "range": "mse", "refit_every": 2},
        "activations": {
            "bits": 4,
            "place": "layer_inputs",
            "range": {"name": "ema_min_max", "every": 1},
            "grid": "asymmetric",
        },
    },
    "frozen weights, learned offset": {
        "weights": {"bits": 3, "freezing": {"threshold": 0.02, "momentum": 0.1}},
        "activations": {"bits": 4, "place": "layer_inputs", "grid": "asymmetric"},
    },
    "blend in phases": {
        "weights": {
            "bits": 4,
            "range": "absmax",
            "blend": {"name": "linear", "start": 0.0, "stop": 1.0, "phases": 2},
        },
        "activations": {
            "bits": 4,
            "place": "layer_inputs",
            "estimator": {
                "name": "hyperbolic_tangent",
                "sharpness": {"name": "linear", "start": 1.0, "stop": 2.0},
            },
        },
    },
}
each = pytest.mark.parametrize("quantization", EACH.values(), ids=EACH)
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepared(quantization: dict[str, Any]) -> nn.Module:
    return qtool.prepare(float_net(), quantization, IMAGES).train()


def train(model: nn.Module, steps: int = 1) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.02)
    for _ in range(steps):
        qtool.set_progress(model, 1.0)
        loss = model(IMAGES).square().mean()
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()


def answers(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images)


@each
def test_a_state_dict_holds_tensors_of_its_own(quantization) -> None:
    model = prepared(quantization)
    train(model)
    before = answers(model)
    for key, value in model.state_dict().items():
        assert isinstance(value, Tensor), key
        if key.endswith("_extra_state"):
            value.fill_(-7)
    assert torch.equal(answers(model), before)
    assert all(q.ready for q in model.modules() if isinstance(q, FakeQuantize))


@each
def test_a_loaded_state_goes_on_as_the_one_that_was_saved(quantization, tmp_path: Path) -> None:
    model = prepared(quantization)
    train(model, 3)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    other = qtool.prepare(float_net(seed=1), quantization, IMAGES).train()
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    for given in (model, other):
        train(given, 2)
    assert torch.equal(answers(other), answers(model))
    steps = [q.observer.steps for q in model.modules() if isinstance(q, ActivationQuantizer)]
    found = [q.observer.steps for q in other.modules() if isinstance(q, ActivationQuantizer)]
    assert found == steps


@pytest.mark.parametrize(
    ("name", "way"), list(zip(EACH, ["every value", "floats", "soup", "soup"], strict=True))
)
def test_an_average_of_state_dicts_loads_and_converts(name: str, way: str) -> None:
    quantization = EACH[name]
    model = prepared(quantization)
    train(model)
    mean = copy.deepcopy(model.state_dict())
    kept: list[dict[str, Tensor]] = []
    for _ in range(3):
        train(model)
        new = copy.deepcopy(model.state_dict())
        kept.append(new)
        for key, value in mean.items():
            if way == "every value":
                value.copy_(0.9 * value + 0.1 * new[key])
            elif value.dtype.is_floating_point:
                value.mul_(0.9).add_(new[key], alpha=0.1)
    if way == "soup":
        mean = {
            k: torch.stack([s[k].double() for s in kept]).mean(0).to(v.dtype)
            for k, v in mean.items()
        }
    averaged = prepared(quantization)
    averaged.load_state_dict(mean)
    grids = [q.grid for q in model.modules() if isinstance(q, FakeQuantize)]
    assert [q.grid for q in averaged.modules() if isinstance(q, FakeQuantize)] == grids
    integer = qtool.convert(averaged.eval())
    codes = {n: layer.input_zero_point for n, layer in integer_layers(integer).items()}
    assert all(z is None or bool((z.float() == z.float().round()).all()) for z in codes.values())
    assert answers(integer).isfinite().all()


@each
def test_averages_in_place_convert(quantization) -> None:
    model = prepared(quantization)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    loop = copy.deepcopy(model)
    for _ in range(3):
        train(model)
        average.update_parameters(model)
        with torch.no_grad():
            pairs = zip(loop.state_dict().values(), model.state_dict().values(), strict=True)
            for mean, new in pairs:
                mean.copy_(0.9 * mean + 0.1 * new)
    for averaged in (average.module, loop):
        averaged.train()
        qtool.set_progress(averaged, 1.0)
        assert qtool.convert(averaged.eval()) is not None


def test_a_zero_point_between_two_integers_counts_as_the_nearest() -> None:
    quantization = EACH["followed, zero point"]
    model = prepared(quantization)
    inputs = quant_layers(model)["conv1"].input_quantizer
    assert inputs is not None
    whole = copy.deepcopy(model)
    inputs.zero_point += 0.4
    assert torch.equal(answers(model), answers(whole))
    assert inputs.on_grid.zero_point == inputs.zero_point - 0.4


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("steps", [0, 12_345_678])
def test_a_state_outlasts_averages_of_equal_ones(kind, steps: int) -> None:
    state: QuantizerState = {"ready": True, "grid": kind, "steps": steps, "frozen": True}
    mean = encode(state)
    for _ in range(50):
        mean.copy_(0.9 * mean + 0.1 * encode(state))
    found = decode(mean)
    assert abs(found["steps"] - steps) <= 4e-6 * steps
    assert {**found, "steps": steps} == state


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"ready": True, "grid": "unsigned"}, {"ready": True, "grid": "full"}),
        ({"ready": False, "grid": None}, {"ready": True, "grid": "narrow"}),
        ({"ready": False, "grid": "full"}, {"ready": True, "grid": "full"}),
    ],
)
def test_an_average_that_fits_no_grid_is_refused(first, second) -> None:
    one, other = (encode(state | {"steps": 0, "frozen": False}) for state in (first, second))
    with pytest.raises(ValueError, match="an average over models whose grids differ"):
        decode((one + other) / 2)


@pytest.mark.parametrize("broken", [99.0, -3.0, float("inf")])
def test_a_grid_that_does_not_exist_is_refused(broken: float) -> None:
    state = encode({"ready": True, "grid": "full", "steps": 0, "frozen": False})
    state[4] = broken
    with pytest.raises(ValueError, match="the state of a quantizer"):
        decode(state)


def test_the_state_of_older_files_is_read() -> None:
    model = prepared(LEARNED)
    train(model)
    old: dict[str, Any] = dict(model.state_dict())
    for name, module in model.named_modules():
        key = f"{name}._extra_state"
        if isinstance(module, FakeQuantize):
            assert module.grid is not None
            old[key] = {"ready": True, "grid": module.grid.kind, "steps": 5}
            if not isinstance(module, ActivationQuantizer):
                old[key] |= {"frozen": False}
        elif key in old:
            old[key] = {"started": True}
    other = qtool.prepare(float_net(seed=1), LEARNED).train()
    other.load_state_dict(old)
    assert torch.equal(answers(other), answers(model))
    inputs = quant_layers(other)["conv1"].input_quantizer
    assert inputs is not None
    assert (inputs.observer.steps, inputs.grid) == (5, IntegerGrid(8, "full"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    list(zip(EACH, [torch.float16, torch.bfloat16, torch.float64, torch.bfloat16], strict=True)),
)
def test_scales_stay_float32_whatever_the_model_becomes(name: str, dtype: torch.dtype) -> None:
    model = prepared(EACH[name])
    train(model)
    before = {k: v.clone() for k, v in model.state_dict().items() if "_quantizer." in k}
    cast = model.to(dtype)
    for key, value in cast.state_dict().items():
        if "_quantizer." in key:
            assert value.dtype == before[key].dtype, key
            assert torch.equal(value, before[key]), key
        elif key.endswith("weight"):
            assert value.dtype == dtype
    output = cast(IMAGES.to(dtype))
    assert output.dtype == dtype
    output.float().square().mean().backward()
    for key, parameter in cast.named_parameters():
        if key.endswith("quantizer.scale"):
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32


def test_scales_move_to_another_device() -> None:
    model = qtool.prepare(float_net(), LEARNED, IMAGES).to("meta", torch.float16)
    scales = [q.scale for q in model.modules() if isinstance(q, FakeQuantize)]
    assert {scale.device.type for scale in scales} == {"meta"}
    assert {scale.dtype for scale in scales} == {torch.float32}


@pytest.mark.parametrize("ran", [False, True])
@each
def test_a_pickled_model_goes_on_as_it_was(quantization, ran: bool) -> None:
    model = qtool.prepare(float_net(), quantization, IMAGES if ran else None).train()
    if ran:
        train(model, 2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        torch.load(file, weights_only=False),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ]
    train(model, 2)
    expected = qtool.convert(model)
    for other in copies:
        train(other, 2)
        assert torch.equal(answers(other), answers(model))
        assert torch.equal(answers(qtool.convert(other)), answers(expected))


def test_a_model_with_a_users_estimator_is_pickled_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def soft(grad, u, low, high, *, slope=1.0):\n    return grad * slope\n")
    estimator = {"name": f"{path}:soft", "slope": 0.5}
    model = prepared({"weights": {"bits": 4, "estimator": estimator}})
    other = pickle.loads(pickle.dumps(model))
    for given in (model, other):
        train(given)
    weights = [layer.weight for layer in quant_layers(model).values()]
    for weight, found in zip(weights, quant_layers(other).values(), strict=True):
        assert torch.equal(weight, found.weight)

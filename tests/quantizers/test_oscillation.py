"""Oscillations: counted, frozen and dampened, against the same arithmetic in plain Python."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool import pipeline
from qtool.integer.layers import integer_layers
from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.control import dampening_penalty, set_progress
from qtool.quantizers.layers import QuantConv2d, QuantLinear, quant_layers, take_oscillations
from qtool.quantizers.oscillation import SAMPLE, OscillationTracker, codes_of_all, observe
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import WeightQuantization
from tests.kit import metrics, write_recipe

NARROW = IntegerGrid(4, "narrow")
ONE = torch.tensor(1.0)
FIXED = {"range": {"name": "fixed", "scale": 0.5}}
# one weight for each row, one step for each column
WALK = [
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    [0, 1, 1, 1, 0, 0, 1, 1, 2, 1],
    [0, 1, 2, 3, 4, 5, 6, 7, 7, 6],
    [3, 3, 3, 3, 3, 3, 3, 3, 3, 3],
    [5, -5, -5, 5, 5, 6, 6, 5, 4, 3],
]


def by_hand(codes: list[int], m: float) -> tuple[float, float, int]:
    """Return a weight's frequency, the moving average of its code, and its number of changes."""
    frequency, average, last, changes = 0.0, float(codes[0]), 0, 0
    for before, after in pairwise(codes):
        move = (after > before) - (after < before)
        oscillates = move != 0 and last != 0 and move != last
        frequency = m * oscillates + (1 - m) * frequency
        average = m * after + (1 - m) * average
        last = move or last
        changes += move != 0
    return frequency, average, changes


def quantizer(weight: Tensor, **keys: Any) -> WeightQuantizer:
    return WeightQuantizer(WeightQuantization.model_validate({"bits": 4} | keys), weight)


def watch(
    tracker: OscillationTracker, weight: Tensor, scale: Tensor, grid: IntegerGrid, limit: float
) -> None:
    codes = tracker.codes_of(weight, scale, grid)
    observe([tracker], [codes])
    if tracker.freezes:
        tracker.freeze(codes, limit)


@pytest.mark.parametrize("momentum", [None, 0.01, 0.3])
def test_changes_and_frequencies_are_those_counted_by_hand(momentum: float | None) -> None:
    walk = torch.tensor(WALK, dtype=torch.float32)
    tracker = OscillationTracker(walk[:, :1], momentum)
    for step in range(walk.shape[1]):
        watch(tracker, walk[:, step : step + 1] * 0.3, ONE * 0.3, NARROW, 9.0)
    expected = [by_hand(row, momentum or 0.01) for row in WALK]
    np.testing.assert_allclose(tracker.frequency, [f for f, _, _ in expected], rtol=1e-5)
    if momentum is not None:
        np.testing.assert_allclose(tracker.average, [a for _, a, _ in expected], rtol=1e-5)
    seen = tracker.take_metrics()
    changes = sum(count for _, _, count in expected)
    assert seen["flip_ratio"] == pytest.approx(changes / (len(WALK) * 9))
    assert seen["oscillation_frequency"] == pytest.approx(
        np.mean([f for f, _, _ in expected]), rel=1e-5
    )
    assert ("frozen_share" in seen) == (momentum is not None)


def test_each_report_begins_anew() -> None:
    tracker = OscillationTracker(torch.zeros(2), None)
    for value in (0.0, 1.0, 0.0):
        watch(tracker, torch.tensor([value, 3.0]), ONE, NARROW, 0.0)
    assert tracker.take_metrics()["flip_ratio"] == 0.5
    watch(tracker, torch.tensor([0.0, 3.0]), ONE, NARROW, 0.0)
    assert tracker.take_metrics()["flip_ratio"] == 0.0


@pytest.mark.parametrize("freezes", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (5, 7)])
def test_each_channel_is_counted_in_steps_of_its_own(shape: tuple[int, ...], freezes: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = (torch.rand(shape[0], generator=generator) + 0.1).reshape(-1, *[1] * (len(shape) - 1))
    before, after = (torch.randint(-7, 8, shape, generator=generator) for _ in range(2))
    tracker = OscillationTracker(before, 0.1 if freezes else None)
    memory = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    for codes in (before, after):
        weight = (codes * scale).contiguous(memory_format=memory)
        watch(tracker, weight, scale, NARROW, 9.0)
    expected = float((before != after).float().mean())
    assert tracker.take_metrics()["flip_ratio"] == pytest.approx(expected)


def test_of_a_big_weight_an_even_sample_is_watched() -> None:
    weight = torch.zeros(40, 100, 3, 3)
    tracker = OscillationTracker(weight, None)
    assert len(tracker.watched) <= SAMPLE
    assert len(tracker.watched) > SAMPLE / 2
    assert len(tracker.watched.diff().unique()) == 1
    scale = torch.linspace(0.1, 4, 40).reshape(-1, 1, 1, 1)
    watch(tracker, weight, scale, NARROW, 0.0)
    changed = weight.clone()
    changed[:10] = scale[:10]  # a quarter moves by one code
    watch(tracker, changed, scale, NARROW, 0.0)
    assert tracker.take_metrics()["flip_ratio"] == pytest.approx(0.25, abs=0.001)


def test_all_of_a_big_weight_is_watched_where_it_may_freeze() -> None:
    assert len(OscillationTracker(torch.zeros(40, 1_000), 0.01).watched) == 40_000


def test_evaluation_and_passes_without_gradients_are_not_counted() -> None:
    made = quantizer(torch.zeros(3, 3), **FIXED)
    made(torch.zeros(3, 3))
    with torch.no_grad():
        made(torch.ones(3, 3))
    made.eval()(torch.ones(3, 3))
    made.train()(torch.zeros(3, 3))
    assert made.tracker.take_metrics()["flip_ratio"] == 0.0


def frozen_quantizer(**keys: Any) -> tuple[WeightQuantizer, Tensor]:
    """Return a quantizer whose first weight was frozen between 2 and 3, and the weight."""
    weight = torch.tensor([[1.0, 0.6], [-1.1, 0.2]])
    settings = {"freezing": {"threshold": 0.2, "momentum": 0.25}} | FIXED | keys
    made = quantizer(weight, **settings)
    for value in (1.0, 1.5, 1.5, 1.0):
        weight = weight.clone()
        weight[0, 0] = value
        made(weight)
    assert made.tracker.frozen.tolist() == [True, False, False, False]
    return made, weight


def test_a_weight_that_oscillates_too_often_is_frozen_at_its_mean_code() -> None:
    made, _ = frozen_quantizer()
    frequency, average, _ = by_hand([2, 3, 3, 2], 0.25)
    assert frequency > 0.2
    assert made.tracker.average[0] == round(average)
    assert made(torch.zeros(2, 2))[0, 0] == round(average) * 0.5


@pytest.mark.parametrize(
    "codes", [[2, 3, 3, 2], [3, 2, 2, 3], [-2, -3, -3, -2], [-3, -2, -2, -3]], ids=str
)
def test_a_mean_code_between_two_is_the_nearer_one(codes: list[int]) -> None:
    tracker = OscillationTracker(torch.zeros(1, 1), 0.25)
    for code in codes:
        watch(tracker, torch.full((1, 1), float(code)), ONE, NARROW, 0.2)
    assert tracker.frozen.all()
    _, average, _ = by_hand(codes, 0.25)
    nearest = min((-3, -2, 2, 3), key=lambda code: abs(code - average))
    held = tracker.hold(torch.zeros(1, 1), ONE * 0.5, NARROW)
    assert held.item() == nearest * 0.5


def test_a_frozen_weight_stays_whatever_the_latent_weight_does() -> None:
    made, weight = frozen_quantizer()
    held = made(weight)[0, 0].detach()
    for value in (9.0, -9.0, 0.0, 1.5):
        moved = weight.clone()
        moved[0, 0] = value
        assert made(moved)[0, 0] == held
        assert made.eval()(moved)[0, 0] == held
        made.train()
    free = weight.clone()
    free[1, 0] = 3.0
    assert made(free)[1, 0] == 3.0


def test_a_frozen_weight_gets_no_gradient() -> None:
    made, weight = frozen_quantizer()
    weight = weight.requires_grad_()
    made(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("grid", ["narrow", "full", "mid_rise"])
def test_a_frozen_weight_keeps_its_code_when_its_scale_moves(bits: int, grid: str) -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    made = quantizer(
        weight, bits=bits, grid=grid, freezing={"threshold": 0.05, "momentum": 0.3}, range="learned"
    )
    for step in range(12):
        made(weight * (1 if step % 2 else -1))
    frozen = made.tracker.frozen.reshape(3, 4).clone()
    assert bool(frozen.any())
    codes = made.tracker.average.reshape(3, 4)[frozen]
    for factor in (0.3, 1.7, 11.0):
        with torch.no_grad():
            made.scale.mul_(factor)
        found = made(weight)
        expected = (codes - made.known_grid.offset) * made.scale.expand(3, 4)[frozen]
        np.testing.assert_allclose(found[frozen].detach(), expected.detach(), rtol=1e-6)
        assert torch.equal(made.tracker.average.reshape(3, 4)[frozen], codes)


def test_a_checkpoint_brings_frozen_weights_back() -> None:
    source, weight = frozen_quantizer()
    target = quantizer(torch.zeros(2, 2), freezing={"threshold": 0.2, "momentum": 0.25}, **FIXED)
    target.load_state_dict(source.state_dict())
    for value in (1.5, -2.0, 1.5, -2.0):
        moved = weight.clone()
        moved[1, 1] = value
        assert torch.equal(target(moved), source(moved))
    for name in ("frequency", "average", "frozen", "codes", "direction"):
        assert torch.equal(getattr(target.tracker, name), getattr(source.tracker, name))


def test_a_threshold_may_fall_during_training() -> None:
    threshold = {"name": "linear", "start": 1.0, "stop": 0.0}
    made = quantizer(torch.zeros(1, 1), freezing={"threshold": threshold, "momentum": 0.5}, **FIXED)
    for value in (0.0, 0.5, 0.0, 0.5):
        made(torch.full((1, 1), value))
    assert not made.tracker.frozen.any()
    made.set_progress(0.9)
    made(torch.zeros(1, 1))
    assert made.tracker.frozen.all()


def conv_net(**weights: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )
    section = {
        "weights": {"bits": 3} | weights,
        "activations": {"bits": 4, "place": "layer_inputs"},
    }
    return qtool.prepare(net, section, torch.randn(8, 2, 6, 6))


def test_the_integer_model_holds_the_code_a_weight_was_frozen_at() -> None:
    model = conv_net(freezing={"threshold": 0.01, "momentum": 0.1})
    conv = model[0]
    assert isinstance(conv, QuantConv2d)
    assert conv.weight_quantizer is not None
    images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    flip = torch.zeros_like(conv.weight)
    flip[0, 0, 0] = 3 * conv.weight_quantizer.scale[0, 0, 0].detach()
    for sign in (1, -1, 1, -1, 1):
        with torch.no_grad():
            conv.weight[0, 0, 0].copy_(sign * flip[0, 0, 0])
        model(images).sum().backward()
    tracker = conv.weight_quantizer.tracker
    frozen = tracker.frozen.reshape(conv.weight.shape)
    assert frozen.sum() >= 3
    with torch.no_grad():
        conv.weight.copy_(torch.where(frozen, 99.0, conv.weight))
    integer = integer_layers(qtool.convert(model.eval()))["0"]
    gamma_sign = model[1].get_parameter("weight").sign().reshape(-1, 1, 1, 1)
    expected = tracker.average.reshape(conv.weight.shape) * gamma_sign
    assert torch.equal(integer.codes[frozen].float(), expected[frozen].detach())


@pytest.mark.parametrize("grid", ["narrow", "full", "mid_rise"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_the_penalty_is_the_squared_distance_to_the_level(grid: str, granularity: str) -> None:
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    made = quantizer(
        w, bits=2, grid=grid, dampening=0.3, granularity=granularity, range={"name": "mse"}
    )
    penalty = made.penalty(w)
    assert penalty is not None
    penalty.backward()
    held, s = made.known_grid, made.scale.double().numpy()
    values = w.detach().double().numpy()
    u = values / s + held.offset
    level = (np.clip(np.rint(u), held.qmin, held.qmax) - held.offset) * s
    ends = [(end - held.offset) * s for end in (held.qmin, held.qmax)]
    np.testing.assert_allclose(
        float(penalty.detach()), 0.3 * np.sum((level - np.clip(values, *ends)) ** 2), rtol=1e-5
    )
    inside = (u >= held.qmin) & (u <= held.qmax)
    assert not inside.all()
    np.testing.assert_allclose(w.grad, 2 * 0.3 * (values - level) * inside, rtol=1e-4, atol=1e-6)


def test_the_penalty_leaves_the_scale_alone() -> None:
    w = torch.randn(4, 6, requires_grad=True)
    made = quantizer(w, dampening=0.3)
    penalty = made.penalty(w)
    assert penalty is not None
    penalty.backward()
    assert made.scale.grad is None


def test_the_penalty_follows_its_schedule_and_sums_over_layers() -> None:
    model = conv_net(dampening={"name": "linear", "start": 0.0, "stop": 0.2})
    nothing = dampening_penalty(model)
    assert nothing is not None
    assert nothing == 0
    full = None
    for progress, share in ((1.0, 1.0), (0.25, 0.25)):
        set_progress(model, progress)
        penalty = dampening_penalty(model)
        assert penalty is not None
        if full is None:
            full = float(penalty.detach())
        assert float(penalty.detach()) == pytest.approx(share * full, rel=1e-5)
    set_progress(model, 1.0)
    parts = [
        float(part.detach())
        for layer in quant_layers(model).values()
        if layer.weight_quantizer is not None
        and (part := layer.weight_quantizer.penalty(layer.weight)) is not None
    ]
    assert len(parts) == 2
    assert sum(parts) == pytest.approx(full, rel=1e-5)


def test_nothing_is_added_to_the_loss_where_nothing_is_dampened() -> None:
    assert dampening_penalty(conv_net()) is None


def test_dampening_pulls_weights_onto_their_levels() -> None:
    torch.manual_seed(0)
    settings = {"weights": {"bits": 4, "range": {"name": "fixed", "scale": 0.2}, "dampening": 1.0}}
    model = qtool.prepare(nn.Sequential(nn.Linear(20, 10)), settings, torch.randn(4, 20))
    layer = model[0]
    assert isinstance(layer, QuantLinear)
    start = layer.weight.detach().clone()
    for _ in range(60):
        layer.weight.grad = None
        penalty = dampening_penalty(model)
        assert penalty is not None
        penalty.backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            layer.weight.sub_(layer.weight.grad, alpha=0.1)
    levels = torch.round(start / 0.2) * 0.2
    torch.testing.assert_close(layer.weight.detach(), levels, rtol=0, atol=1e-4)


def test_frozen_weights_add_nothing_to_the_penalty() -> None:
    made, weight = frozen_quantizer(dampening=1.0)
    moved = weight.clone()
    moved[0, 0] = 1.3
    expected = sum((round(v / 0.5) * 0.5 - v) ** 2 for v in (0.6, -1.1, 0.2))
    penalty = made.penalty(moved)
    assert penalty is not None
    assert float(penalty) == pytest.approx(expected, rel=1e-5)


def test_measures_are_named_by_layer() -> None:
    model = conv_net()
    model(torch.randn(4, 2, 6, 6))
    found = take_oscillations(model)
    assert {measure: set(layers) for measure, layers in found.items()} == {
        "flip_ratio": {"0", "4"},
        "oscillation_frequency": {"0", "4"},
    }


def test_a_training_reports_flips_of_every_layer(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path,
        {
            "data.train_samples": 256,
            "quantization.weights": {
                "bits": 2,
                "dampening": {"name": "linear", "start": 0.0, "stop": 0.01},
                "freezing": {"threshold": 0.005, "momentum": 0.05},
            },
            "quantization.overrides": [{"match": "fc3", "weights": None}],
            "training": {"epochs": 3, "optimizer": "sgd", "learning_rate": 0.2},
        },
    )
    pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    shares = []
    for line in metrics(tmp_path / "run"):
        for measure in ("flip_ratio", "oscillation_frequency", "frozen_share"):
            assert set(line[measure]) == {"conv1", "conv2", "fc1", "fc2"}
            assert all(0 <= value <= 1 for value in line[measure].values())
        assert max(line["flip_ratio"].values()) > 0
        shares.append(line["frozen_share"])
    for layer in shares[0]:
        assert shares[0][layer] <= shares[1][layer] <= shares[2][layer]
    assert max(shares[2].values()) > 0
    converted = pipeline.convert(tmp_path / "run", device="cpu")
    before, after = converted.validation_accuracy_before, converted.validation_accuracy_after
    assert abs(before - after) <= 2 / 500


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scale", [0.3, 0.37, 0.1234])
def test_a_learned_scale_gets_the_gradient_of_frozen_weights_times_their_codes(
    scale: float, granularity: str
) -> None:
    weight, g = (torch.randn(4, 50, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    keys = {"granularity": granularity, "freezing": {"threshold": 0.2}}
    made, plain = quantizer(weight, **keys), quantizer(weight, granularity=granularity)
    made(weight)
    codes = torch.randint(-7, 8, (4, 50), generator=torch.Generator().manual_seed(2)).float()
    frozen = torch.arange(200).reshape(4, 50) % 3 == 0
    made.tracker.average.copy_(codes.flatten())
    made.tracker.frozen.copy_(frozen.flatten())
    for each in (made, plain):
        each.scale.data.fill_(scale)
    made(weight).backward(g)
    plain(weight).backward(torch.where(frozen, 0.0, g))
    products = torch.where(frozen, g * codes, 0.0).double()
    shared = weight.numel() // made.scale.numel()
    expected = products.sum_to_size(made.scale.shape) / np.sqrt(shared * 7)
    assert made.scale.grad is not None
    assert plain.scale.grad is not None
    np.testing.assert_allclose(made.scale.grad, expected + plain.scale.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounding", ["stochastic_rounding", "additive_noise"])
def test_frozen_weights_take_no_part_in_random_rounding(rounding: str) -> None:
    made, weight = frozen_quantizer(rounding=rounding)
    held = {float(made(weight)[0, 0]) for _ in range(20)}
    assert held == {float(made.tracker.average[0]) * 0.5}


def test_many_weights_have_the_codes_that_each_has_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 2, 2), (5, 7), (70, 80), (6, 2, 3, 3), (3, 4), (2, 2)]
    grids = [NARROW, NARROW, NARROW, IntegerGrid(2, "mid_rise"), NARROW, IntegerGrid(8, "full")]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    weights[4] = weights[4].double()
    scales = [torch.rand(len(w), generator=generator).add(0.1) for w in weights]
    scales[1] = torch.tensor(0.3)  # one for all channels
    scales[5][0] = -1.0  # counts as the smallest there is
    trackers = [OscillationTracker(w, 0.1 if k == 3 else None) for k, w in enumerate(weights)]
    scales = [
        s.reshape(-1, *[1] * (w.ndim - 1)) if s.ndim else s
        for s, w in zip(scales, weights, strict=True)
    ]
    found = codes_of_all(trackers, weights, scales, grids)
    assert [len(codes) for codes in found] == [48, 35, 2800, 108, 12, 4]
    for tracker, weight, scale, grid, codes in zip(
        trackers, weights, scales, grids, found, strict=True
    ):
        alone = tracker.codes_of(weight, scale.clamp_min(1e-8), grid)
        assert torch.equal(codes, alone)
        assert codes.dtype == torch.float32

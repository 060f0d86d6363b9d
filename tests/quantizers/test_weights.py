"""Scales of weights: where they start, when they are fitted again, when they freeze."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.numerics.ranges import RANGES, ppq, refine_scale
from qtool.quantizers.control import blend_alphas, set_progress
from qtool.quantizers.layers import QuantConv2d, make_quant_layer, quant_layers
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import WeightQuantization

OF_INPUTS = ("ema_min_max", "half_normal", "pact")
NEEDED = {"fixed": {"scale": 0.1}}  # parameters without a default
RULES = [name for name in RANGES.names() if name not in OF_INPUTS]
BLEND = {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 0.5]}


def settings(**keys: Any) -> WeightQuantization:
    return WeightQuantization.model_validate({"bits": 4} | keys)


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def conv_layer(**keys: Any) -> QuantConv2d:
    torch.manual_seed(0)
    layer = make_quant_layer(nn.Conv2d(3, 4, 3), settings(**keys), None)
    assert isinstance(layer, QuantConv2d)
    return layer


def weight_scale(layer: QuantConv2d) -> Tensor:
    assert layer.weight_quantizer is not None
    return layer.weight_quantizer.scale


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (5, 12)])
def test_scales_per_channel_come_from_each_output_channel(
    rule: str, shape: tuple[int, ...]
) -> None:
    w = weight(*shape)
    params = NEEDED.get(rule, {})
    made = WeightQuantizer(settings(range={"name": rule} | params), w).eval()
    made(w)  # searches wait until the scale is needed
    scale = made.scale
    assert scale.shape == (5, *[1] * (len(shape) - 1))
    expected = RANGES.build(rule, **params)(w.reshape(5, -1), IntegerGrid(4, "narrow"))
    assert torch.equal(scale.detach().flatten(), expected)


@pytest.mark.parametrize("rule", RULES)
def test_one_scale_for_the_tensor_comes_from_all_of_it(rule: str) -> None:
    w = weight(5, 3, 2, 2)
    params = NEEDED.get(rule, {})
    made = WeightQuantizer(settings(range={"name": rule} | params, granularity="per_tensor"), w)
    made.eval()(w)
    assert made.scale.shape == ()
    if rule == "he_uniform":
        params = {"fan_in": 3 * 2 * 2}  # inputs of one output, not the elements of the tensor
    expected = RANGES.build(rule, **params)(w.reshape(1, -1), IntegerGrid(4, "narrow"))[0]
    assert torch.equal(made.scale.detach(), expected)


def test_one_bit_is_two_levels_whatever_the_grid_says() -> None:
    w = weight(2, 50)
    w_hat = WeightQuantizer(settings(bits=1, grid="full"), w)(w)
    mean = w.abs().mean(1, keepdim=True)
    np.testing.assert_allclose(w_hat.detach(), w.sign() * mean, rtol=1e-5)


def test_the_quantized_weight_lies_on_the_grid_of_the_scale() -> None:
    w, grid = weight(5, 12), IntegerGrid(4, "narrow")
    made = WeightQuantizer(settings(range="absmax"), w)
    expected = dequantize(quantize(w, made.scale, 0, grid), made.scale, 0, grid)
    assert torch.equal(made(w), expected)


def test_a_range_is_fitted_again_every_so_many_training_steps() -> None:
    w = weight(2, 9)
    made = WeightQuantizer(settings(range="absmax", refit_every=3), w)
    start, seen = made.scale.clone(), []
    for step in range(8):
        made((step + 2) * w)
        seen.append(made.scale / start)
    fitted = [2, 2, 2, 5, 5, 5, 8, 8]  # the factor at steps 0, 3 and 6
    np.testing.assert_allclose(torch.stack(seen)[:, 0, 0], fitted, rtol=1e-6)


@pytest.mark.parametrize(("rule", "steps"), [("absmax", 1), ("mse", 100)])
def test_absmax_is_fitted_at_every_step_and_a_search_at_every_hundredth(
    rule: str, steps: int
) -> None:
    w = weight(1, 9)
    made = WeightQuantizer(settings(range={"name": rule}), w)
    made(w)
    start, changed = made.scale.clone(), 0
    while torch.equal(made.scale, start):
        made(2 * w)
        changed += 1
    assert changed == steps


def test_ppq_goes_on_from_its_last_scale_by_one_iteration_at_each_step() -> None:
    w, grid = weight(3, 40), IntegerGrid(4, "narrow")
    made = WeightQuantizer(settings(range="ppq"), w)
    made(w)
    expected = made.scale.clone()
    for step in range(1, 6):
        moved = (1 + 0.01 * step) * w + 0.02 * step
        made(moved)
        expected = refine_scale(moved, expected.flatten(), grid).reshape(expected.shape)
        assert torch.equal(made.scale, expected)
    anew = ppq(moved, grid)
    np.testing.assert_allclose(made.scale.flatten(), anew, rtol=0.1)


def test_ppq_follows_a_weight_that_moved_to_what_it_would_settle_at() -> None:
    w, grid = weight(4, 60), IntegerGrid(3, "narrow")
    made = WeightQuantizer(settings(range="ppq", bits=3), w)
    moved = 1.02 * w
    made(w)
    first = made.scale.clone()
    for _ in range(40):
        made(moved)
    assert not torch.equal(made.scale, first)
    settled = refine_scale(moved, made.scale.flatten(), grid)
    assert torch.equal(settled, made.scale.flatten())
    np.testing.assert_allclose(settled, 1.02 * ppq(w, grid), rtol=0.02)


def test_evaluation_never_fits_and_counts_no_step() -> None:
    w = weight(2, 9)
    made = WeightQuantizer(settings(range="absmax", refit_every=2), w).eval()
    start = made.scale.clone()
    made(5 * w)
    assert torch.equal(made.scale, start)
    made.train()
    made(w)
    made.eval()
    made(5 * w)
    made.train()
    made(5 * w)  # the second training step: not yet
    assert torch.equal(made.scale, start)
    made(5 * w)
    np.testing.assert_allclose(made.scale, 5 * start, rtol=1e-6)


def test_a_learned_scale_is_never_fitted_in_training() -> None:
    w = weight(2, 9)
    made = WeightQuantizer(settings(), w)
    start = made.scale.detach().clone()
    made(5 * w)
    assert torch.equal(made.scale.detach(), start)


def test_the_steps_until_the_next_fit_survive_a_checkpoint() -> None:
    w = weight(2, 9)
    source = WeightQuantizer(settings(range="absmax", refit_every=3), w)
    source(w)
    source(w)
    target = WeightQuantizer(settings(range="absmax", refit_every=3), 7 * w)
    target.load_state_dict(source.state_dict())
    target(5 * w)  # the third step
    assert torch.equal(target.scale, source.scale)
    target(5 * w)  # the fourth
    np.testing.assert_allclose(target.scale, 5 * source.scale, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("beside", [{}, {"estimator": "straight_through"}], ids=["", "estimator"])
def test_a_blended_weight_rests_once_alpha_is_one_whatever_the_optimizer_remembers(
    make: Any, beside: dict[str, str]
) -> None:
    layer = conv_layer(range="absmax", blend=BLEND, **beside)
    optimizer = make(layer.parameters())

    def step(progress: float) -> None:
        set_progress(layer, progress)
        optimizer.zero_grad()
        layer(weight(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()

    before = layer.weight.detach().clone()
    step(0.1)
    step(0.4)
    latent = layer.weight.detach().clone()
    assert not torch.equal(latent, before)
    assert layer.bias is not None
    bias = layer.bias.detach().clone()
    step(0.5)
    scale = weight_scale(layer).clone()
    for progress in (0.7, 1.0):
        step(progress)
    assert torch.equal(layer.weight, latent)
    assert torch.equal(weight_scale(layer), scale)
    assert not torch.equal(layer.bias, bias)  # everything else goes on


def test_a_weight_freezes_also_between_its_backward_and_the_step() -> None:
    layer = conv_layer(range="absmax", blend=BLEND)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    layer(weight(2, 3, 6, 6)).square().sum().backward()
    before = layer.weight.detach().clone()
    set_progress(layer, 1.0)
    optimizer.step()
    assert torch.equal(layer.weight, before)


def test_a_blend_of_several_phases_falls_back_and_freezes_after_the_last() -> None:
    layer = conv_layer(range="absmax", blend={"name": "linear", "phases": 2, "window": [0.0, 0.8]})
    made = layer.weight_quantizer
    assert made is not None
    alphas, trains = [], []
    for progress in (0.0, 0.2, 0.399, 0.4, 0.6, 0.799, 0.8, 1.0):
        layer.set_progress(progress)
        alphas.append(float(made.alpha))
        trains.append(layer.weight.requires_grad)
    assert alphas == pytest.approx([0, 0.5, 0.9975, 0, 0.5, 0.9975, 1, 1], abs=1e-6)
    assert trains == [True] * 6 + [False] * 2


def test_alpha_that_comes_to_one_by_rounding_freezes_in_the_last_phase_only() -> None:
    blend = {"name": "polynomial", "power": 20.0, "phases": 2}
    layer = conv_layer(range="absmax", blend=blend)
    trains = []
    for progress in (0.0, 0.45, 0.5, 0.6, 0.99):
        layer.set_progress(progress)
        assert layer.weight_quantizer is not None
        trains.append((float(layer.weight_quantizer.alpha) == 1, layer.weight.requires_grad))
    assert trains == [(False, True), (True, True), (False, True), (False, True), (True, False)]


def test_ppq_searches_anew_where_it_is_asked_to_refit_every_so_many_steps() -> None:
    w, grid = weight(3, 40), IntegerGrid(4, "narrow")
    made = WeightQuantizer(settings(range="ppq", refit_every=2), w)
    for _ in range(2):
        made(w)
    made(5 * w)
    assert torch.equal(made.scale.flatten(), ppq(5 * w, grid))


@pytest.mark.parametrize("first", ["front", "back"])
def test_overrides_blend_layers_one_after_the_other(first: str) -> None:
    windows = [[0.0, 0.4], [0.4, 0.8]][:: 1 if first == "front" else -1]
    overrides = [
        {"match": name, "weights": {"blend": {"name": "cubic", "window": window}}}
        for name, window in zip(("0", "2"), windows, strict=True)
    ]
    section = {"weights": {"bits": 4, "range": "ppq", "blend": "cubic"}, "overrides": overrides}
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = qtool.prepare(net, section, torch.zeros(1, 6))
    done = []
    for progress in (0.3, 0.4, 0.7, 0.8):
        set_progress(model, progress)
        done.append([float(alpha) == 1 for alpha in blend_alphas(model).values()])
    expected = [[False, False], [True, False], [True, False], [True, True]]
    assert done == (expected if first == "front" else [row[::-1] for row in expected])


def test_a_frozen_scale_stays_when_the_weight_changes_and_when_alpha_is_set_again() -> None:
    layer = conv_layer(range="absmax", blend=BLEND)
    set_progress(layer, 0.5)
    scale = weight_scale(layer).clone()
    with torch.no_grad():
        layer.weight.mul_(3)
    set_progress(layer, 0.9)
    layer(weight(2, 3, 6, 6))
    assert torch.equal(weight_scale(layer), scale)


def test_a_weight_that_still_blends_is_fitted_and_trained() -> None:
    layer = conv_layer(range="absmax", blend=BLEND)
    set_progress(layer, 0.49)
    scale = weight_scale(layer).clone()
    with torch.no_grad():
        layer.weight.mul_(3)
    layer(weight(2, 3, 6, 6)).sum().backward()
    np.testing.assert_allclose(weight_scale(layer), 3 * scale, rtol=1e-6)
    assert layer.weight.grad is not None


def test_a_frozen_weight_stays_frozen_after_a_checkpoint() -> None:
    source = conv_layer(range="absmax", blend=BLEND)
    set_progress(source, 1.0)
    target = conv_layer(range="absmax", blend=BLEND)
    target.load_state_dict(source.state_dict())
    with torch.no_grad():
        target.weight.mul_(3)
    target(weight(2, 3, 6, 6))
    assert torch.equal(weight_scale(target), weight_scale(source))
    set_progress(target, 1.0)
    assert not target.weight.requires_grad


@pytest.mark.parametrize("rule", ["learned", "absmax", "mse", "mean_abs"])
def test_rows_that_start_at_zero_start_their_scale_from_their_fan_in(rule: str) -> None:
    layer = nn.Linear(256, 6)
    layer.weight.data = weight(6, 256)
    layer.weight.data[2:4] = 0
    made = WeightQuantizer(settings(range=rule, bits=8), layer.weight)
    made.fit(layer.weight)
    drawn = nn.Linear(256, 2000).weight.detach()
    of_drawn = RANGES.build(rule)(drawn.reshape(1, -1), IntegerGrid(8, "narrow"))
    found = made.scale.detach().flatten()
    np.testing.assert_allclose(found[2:4], of_drawn.expand(2), rtol=0.02)
    rows = layer.weight.detach()[[0, 1, 4, 5]]
    of_rows = RANGES.build(rule)(rows, IntegerGrid(8, "narrow"))
    np.testing.assert_allclose(found[[0, 1, 4, 5]], of_rows, rtol=1e-6)
    assert not made.eval()(layer.weight)[2:4].any()


def test_a_head_that_starts_at_zero_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    labels = (x[:, 0] > 0).long()
    head = nn.Linear(16, 2)
    nn.init.zeros_(head.weight)
    model = qtool.prepare(head, {"weights": {"bits": 8}}, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert float((model(x).argmax(1) == labels).float().mean()) > 0.9


def largest_codes(layer: nn.Module) -> Tensor:
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, WeightQuantizer)
    return quantizer.on_grid.codes(layer.get_parameter("weight").detach()).abs().amax(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_scales_of_8_bits_do_not_run_away(seed: int) -> None:
    torch.manual_seed(seed)
    x, labels = torch.randn(256, 64), torch.randint(10, (256,))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = qtool.prepare(model, {"weights": {"bits": 8}}, x)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 1.0 * (1 - step / 60)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    model(x)  # which brings back what the last step took away
    for layer in quant_layers(model).values():
        assert largest_codes(layer).amin() >= 127 / 4


@pytest.mark.parametrize("moved", [-3.0, 0.0, 1e6])
def test_a_learned_scale_that_a_step_threw_away_comes_back(moved: float) -> None:
    layer = conv_layer(bits=8)
    x = weight(2, 3, 6, 6)
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    with torch.no_grad():
        quantizer.scale.mul_(moved)
    layer(x).sum().backward()
    assert quantizer.scale.grad is not None
    assert torch.isfinite(quantizer.scale.grad).all()
    rows = layer.weight.detach().reshape(4, -1).abs().amax(1).numpy() / 127
    ratio = quantizer.scale.detach().flatten().numpy() / rows
    assert ((ratio > 0.25) & (ratio < 4)).all()


def test_a_scale_that_is_held_is_not_brought_back() -> None:
    layer = conv_layer(bits=8)
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    quantizer.scale.requires_grad = False
    quantizer.scale.data.mul_(100)
    before = quantizer.scale.detach().clone()
    layer(weight(2, 3, 6, 6)).sum().backward()
    assert torch.equal(quantizer.scale.detach(), before)


@pytest.mark.parametrize("progress", [-0.1, 2, float("nan")])
def test_progress_is_a_share(progress: float) -> None:
    with pytest.raises(ValueError, match="share of training done, 0 to 1, not"):
        set_progress(nn.Linear(1, 1), progress)

"""Ranges that are trained, and those with a formula of their own, against NumPy and autograd."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qtool
from qtool.conversion.biases import round_biases
from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import ActivationQuantization, WeightQuantization
from qtool.training.optimizers import parameter_groups

Array = np.ndarray[Any, Any]
UNSIGNED = IntegerGrid(4, "unsigned")


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(weight: Tensor, **keys: Any) -> WeightQuantizer:
    return WeightQuantizer(WeightQuantization.model_validate({"bits": 4} | keys), weight)


def inputs(**keys: Any) -> ActivationQuantizer:
    return ActivationQuantizer(ActivationQuantization.model_validate({"bits": 4} | keys))


def gradients(made: FakeQuantize, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the scale."""
    x = x.clone().requires_grad_()
    made(x).backward(g)
    assert x.grad is not None
    assert made.scale.grad is not None
    return x.grad, made.scale.grad


def lsq(x: Array, g: Array, s: float, grid: IntegerGrid, slope: Array | None = None) -> float:
    """Return the sum over values of g * d x_hat / d s, divided by sqrt(N high).

    Without a `slope` the derivative of rounding is 1 inside the grid and 0 outside.
    """
    u = x / s + grid.offset
    q = np.clip(np.rint(u), grid.qmin, grid.qmax)
    if slope is None:
        slope = ((u >= grid.qmin) & (u <= grid.qmax)).astype(float)
    return float(np.sum(g * (q - grid.offset - slope * (u - grid.offset)))) / math.sqrt(
        x.size * grid.qmax
    )


def double(*tensors: Tensor) -> list[Array]:
    return [t.detach().double().numpy() for t in tensors]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("grid", ["narrow", "full", "mid_rise", "ternary"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_the_learned_scale_of_weights_has_lsqs_gradient(
    bits: int, grid: str, granularity: str
) -> None:
    if (grid, bits) == ("mid_rise", 8) or (grid == "ternary" and bits != 2):
        return
    w, g = random(6, 3, 3, 3), random(6, 3, 3, 3, seed=4)
    made = weights(w, bits=bits, grid=grid, granularity=granularity)
    _, found = gradients(made, w, g)
    rows = [w] if granularity == "per_tensor" else list(w)
    outer = [g] if granularity == "per_tensor" else list(g)
    expected = [
        lsq(*double(row, grad), float(s), made.known_grid)
        for row, grad, s in zip(rows, outer, made.scale.detach().flatten(), strict=True)
    ]
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("grid", ["unsigned", "full", "narrow"])
def test_the_learned_scale_of_inputs_has_lsqs_gradient(bits: int, grid: str) -> None:
    x, g = random(8, 5, 4, 4), random(8, 5, 4, 4, seed=4)
    made = inputs(bits=bits, grid=grid)
    _, found = gradients(made, x, g)
    expected = lsq(*double(x, g), float(made.scale.detach()), made.known_grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_chain_rule_takes_the_slope_of_the_estimator(granularity: str) -> None:
    w, g = random(5, 40), random(5, 40, seed=4)
    made = weights(w, granularity=granularity, scale_gradient="chain_rule", estimator="sinusoidal")
    _, found = gradients(made, w, g)
    grid, expected = made.known_grid, []
    rows = [(w, g)] if granularity == "per_tensor" else list(zip(w, g, strict=True))
    for (row, grad), s in zip(rows, made.scale.detach().flatten(), strict=True):
        values, outer = double(row, grad)
        u = values / float(s)
        slope = (1 - 0.5 * np.cos(2 * np.pi * u)) * ((u >= grid.qmin) & (u <= grid.qmax))
        expected.append(lsq(values, outer, float(s), grid, slope))
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-5)


def away_from_the_edges(x: Tensor, scale: Tensor, grid: IntegerGrid) -> Tensor:
    """Return x without values that torch and LSQ count differently: half a step beyond an edge."""
    u = x / scale
    between = ((u > grid.qmin - 0.51) & (u < grid.qmin)) | (
        (u > grid.qmax) & (u < grid.qmax + 0.51)
    )
    return torch.where(between, torch.zeros_like(x), x)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["full", "narrow"])
def test_a_learned_scale_per_channel_agrees_with_torchs_own(bits: int, kind: str) -> None:
    w, g = random(6, 4, 3, 3), random(6, 4, 3, 3, seed=4)
    made = weights(w, bits=bits, grid=kind)
    grid, scale = made.known_grid, made.scale.detach().flatten()
    w = away_from_the_edges(w, made.scale.detach(), grid)
    found_w, found_s = gradients(made, w, g)
    own_w, own_s = w.clone().requires_grad_(), scale.clone().requires_grad_()
    factor = 1 / math.sqrt(w[0].numel() * grid.qmax)
    torch._fake_quantize_learnable_per_channel_affine(
        own_w, own_s, torch.zeros(6), 0, grid.qmin, grid.qmax, factor
    ).backward(g)
    assert own_s.grad is not None
    assert own_w.grad is not None
    torch.testing.assert_close(found_s.flatten(), own_s.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(found_w, own_w.grad)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["unsigned", "full"])
def test_a_learned_scale_per_tensor_agrees_with_torchs_own(bits: int, kind: str) -> None:
    if (bits, kind) == (1, "full"):
        return  # {-1, +1} has no integer zero point
    x, g = random(16, 4, 5, 5), random(16, 4, 5, 5, seed=4)
    made = inputs(bits=bits, grid=kind)
    made(x)
    grid, scale = made.known_grid, made.scale.detach().clone().reshape(1)
    x = away_from_the_edges(x, scale, grid)
    found_x, found_s = gradients(made, x, g)
    own_x, own_s = x.clone().requires_grad_(), scale.clone().requires_grad_()
    factor = 1 / math.sqrt(x.numel() * grid.qmax)
    torch._fake_quantize_learnable_per_tensor_affine(
        own_x, own_s, torch.zeros(1), grid.qmin, grid.qmax, factor
    ).backward(g)
    assert own_s.grad is not None
    assert own_x.grad is not None
    torch.testing.assert_close(found_s.reshape(1), own_s.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(found_x, own_x.grad)


def lsq_plus(x: Array, g: Array, s: float, beta: float, high: int) -> tuple[float, float]:
    """Return d/ds and d/dbeta of x_hat = s * q + beta, both times 1 / sqrt(N high)."""
    zero = round(-beta / s)
    u = x / s + zero
    inside = (u >= 0) & (u <= high)
    ds = np.where(inside, np.rint(x / s) - x / s, np.where(u < 0, 0, high))
    factor = 1 / math.sqrt(x.size * high)
    return float(np.sum(g * ds)) * factor, float(np.sum(g * ~inside)) * factor


def asymmetric_start() -> tuple[ActivationQuantizer, Tensor, Tensor]:
    x, g = random(16, 40) + 0.4, random(16, 40, seed=4)
    made = inputs(grid="asymmetric")
    made(0.6 * x)  # so that x saturates at both ends
    return made, x, g


def test_a_learned_offset_starts_at_the_smallest_value() -> None:
    made, x, _ = asymmetric_start()
    seen = 0.6 * x
    assert made.offset is not None
    assert made.offset.detach() == seen.min()
    np.testing.assert_allclose(made.scale.detach(), (seen.max() - seen.min()) / 15, rtol=1e-6)
    assert made.zero_point == torch.round(-made.offset.detach() / made.scale.detach())


def test_a_learned_scale_and_offset_have_lsq_pluss_gradients() -> None:
    made, x, g = asymmetric_start()
    assert made.offset is not None
    found_x, found_s = gradients(made, x, g)
    ds, dbeta = lsq_plus(*double(x, g), float(made.scale.detach()), float(made.offset.detach()), 15)
    np.testing.assert_allclose(found_s, ds, rtol=1e-5)
    np.testing.assert_allclose(made.offset.grad, dbeta, rtol=1e-5)
    u = x / made.scale.detach() + made.zero_point
    assert torch.equal(found_x, g * ((u >= 0) & (u <= 15)))


def test_a_learned_offset_under_chain_rule_is_what_autograd_finds() -> None:
    x, g = random(16, 40) + 0.4, random(16, 40, seed=4)
    made = inputs(grid="asymmetric", scale_gradient="chain_rule", estimator="hyperbolic_tangent")
    made(0.6 * x)
    assert made.offset is not None
    made.offset.data = -made.zero_point * made.scale.detach()  # no rounding between the two
    _, found_s = gradients(made, x, g)
    s, beta = (t.detach().double().requires_grad_() for t in (made.scale, made.offset))
    zero = float(made.zero_point)
    # the zero point stands for -beta / s in values, and beta / s moves with both in gradients
    v = x.double() / s - (beta / s - (beta / s).detach()) + zero
    t = v.detach() - v.detach().floor() - 0.5
    k = 2.1667
    slope = k / math.tanh(k) / torch.cosh(2 * k * t) ** 2
    slope = torch.where((v < 0) | (v > 15), 0.0, slope.detach())
    q = v.detach().round().clamp(0, 15) + slope * (v - v.detach())
    # s q + beta, whose value is s (q - zero)
    x_hat = s * (q - zero) + (beta + s * zero) - (beta + s * zero).detach()
    x_hat.backward(g.double())
    assert s.grad is not None
    assert beta.grad is not None
    factor = 1 / math.sqrt(x.numel() * 15)
    np.testing.assert_allclose(found_s, s.grad * factor, rtol=1e-4)
    np.testing.assert_allclose(made.offset.grad, beta.grad * factor, rtol=1e-4)


def test_the_zero_point_follows_a_learned_offset() -> None:
    made, x, g = asymmetric_start()
    assert made.offset is not None
    optimizer = torch.optim.SGD(made.parameters(), 0.5)
    seen = {float(made.zero_point)}
    for _ in range(6):
        optimizer.zero_grad()
        made(x).backward(g.abs())
        optimizer.step()
        made(x)
        expected = torch.round(-made.offset.detach() / made.scale.detach()).clamp(0, 15)
        assert made.zero_point == expected
        seen.add(float(made.zero_point))
    assert len(seen) > 1


def test_a_model_with_learned_offsets_converts_to_the_same_numbers() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.SiLU(), torch.nn.Conv2d(6, 4, 3)
    )
    images = random(12, 2, 9, 9)
    section = {
        "weights": {"bits": 4},
        "activations": {"bits": 4, "place": "layer_inputs", "grid": "asymmetric"},
    }
    model = qtool.prepare(net, section, images).train()
    groups = {group["role"]: group["params"] for group in parameter_groups(model)}
    offsets = {n: p for n, p in model.named_parameters() if n.endswith("input_quantizer.offset")}
    assert len(offsets) == 2
    assert all(any(p is q for q in groups["scales"]) for p in offsets.values())
    before = {name: offset.detach().clone() for name, offset in offsets.items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (model(2 * images) - 1).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(offsets[name].detach(), before[name]) for name in before)
    model.eval()
    round_biases(model)
    integer = qtool.convert(model)
    with torch.no_grad():
        torch.testing.assert_close(integer(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_step_on_pacts_scale_is_a_step_on_its_clip(bits: int, l2: float) -> None:
    x, g = random(8, 30).abs(), random(8, 30, seed=4)
    made = inputs(bits=bits, range={"name": "pact", "l2": l2})
    made(x / 2)  # half of the values saturate
    high, rate = 2**bits - 1, 0.01
    start = float(made.scale.detach()) * high
    np.testing.assert_allclose(start, float(x.max() / 2), rtol=1e-6)

    clip = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    y = x.double().minimum(clip)
    rounded = y + (torch.round(y * high / clip) * clip / high - y).detach()
    loss = (rounded * g.double()).sum() + l2 / 2 * clip.square()
    loss.backward()
    assert clip.grad is not None
    after = start - rate * float(clip.grad)

    optimizer = torch.optim.SGD(made.parameters(), rate)
    made(x).backward(g)
    optimizer.step()
    np.testing.assert_allclose(float(made.scale.detach()) * high, after, rtol=0, atol=1e-6)


def test_pact_passes_the_gradient_between_zero_and_the_clip() -> None:
    made = inputs(range="pact", grid="unsigned")
    made(torch.tensor([0.0, 3.0]))
    x = torch.tensor([-1.0, 0.5, 2.9, 3.5])
    found, _ = gradients(made, x, torch.ones(4))
    assert found.tolist() == [0, 1, 1, 0]


def test_pacts_gradient_does_not_depend_on_how_many_values_there_are() -> None:
    few, many = inputs(range="pact"), inputs(range="pact")
    x = random(4, 10).abs()
    _, one = gradients(few, x, torch.ones_like(x))
    _, four = gradients(many, x.repeat(4, 1), torch.ones(16, 10))
    l2_part = 1e-4 * float(few.scale.detach())
    np.testing.assert_allclose(4 * (one - l2_part), four - l2_part, rtol=1e-5, atol=1e-9)


def dorefa(weight: Tensor, bits: int) -> Tensor:
    """Return 2 quantize_k(tanh w / (2 max|tanh w|) + 1/2) - 1, with the identity for rounding."""
    levels = 2**bits - 1
    squashed = torch.tanh(weight)
    r = squashed / (2 * squashed.abs().max()) + 0.5
    r = r + (torch.round(r * levels) / levels - r).detach()
    return 2 * r - 1


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 7])
def test_dorefa_is_the_papers_formula_forward_and_backward(bits: int, granularity: str) -> None:
    w, g = random(8, 5, 3, 3), random(8, 5, 3, 3, seed=4)
    made = weights(w, bits=bits, grid="mid_rise", range="dorefa", granularity=granularity)
    own, paper = w.clone().requires_grad_(), w.clone().requires_grad_()
    found = made(own)
    found.backward(g)
    expected = dorefa(paper, bits)
    expected.backward(g)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert len(found.unique()) <= 2**bits
    assert own.grad is not None
    assert paper.grad is not None
    torch.testing.assert_close(own.grad, paper.grad, rtol=1e-4, atol=1e-6)


def test_dorefa_stays_in_evaluation_and_in_codes() -> None:
    w = random(4, 20)
    made = weights(w, bits=2, grid="mid_rise", range="dorefa").eval()
    torch.testing.assert_close(made(w), dorefa(w, 2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made(100 * w).abs().amax(), torch.tensor(1.0))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_dorefa_with_one_bit_is_the_mean_times_the_sign(granularity: str) -> None:
    w = random(6, 30)
    found = weights(w, bits=1, range="dorefa", granularity=granularity)(w)
    mean = w.abs().mean() if granularity == "per_tensor" else w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(found, mean * w.sign(), rtol=1e-6, atol=0)


def test_dorefa_on_inputs_saturates_at_zero_and_one() -> None:
    made = inputs(bits=2, range="dorefa", grid="unsigned")
    found = made(torch.tensor([-3.0, 0.1, 0.4, 0.9, 7.0]))
    torch.testing.assert_close(found, torch.tensor([0, 0, 1 / 3, 1, 1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_he_uniform_is_the_papers_step_and_never_moves(bits: int, granularity: str) -> None:
    w = random(8, 5, 3, 3)
    made = weights(w, bits=bits, grid="mid_rise", range="he_uniform", granularity=granularity)
    start = made.scale.clone()
    expected = 2 * math.sqrt(6 / 45) / (2**bits - 1)
    np.testing.assert_allclose(start.flatten(), expected, rtol=1e-6)
    for factor in (1.0, 3.0, 9.0):
        made.train()(factor * w)
    assert torch.equal(made.scale, start)
    assert not list(made.parameters())


def test_a_given_scale_never_moves() -> None:
    w, x = random(4, 9), random(5, 9)
    of_weights = weights(w, range={"name": "fixed", "scale": 0.07})
    of_inputs = inputs(range={"name": "fixed", "scale": 0.07})
    for factor in (1.0, 3.0, 9.0):
        of_weights.train()(factor * w)
        of_inputs.train()(factor * x)
    for made in (of_weights, of_inputs):
        assert bool((made.scale == torch.tensor(0.07)).all())
        assert not list(made.parameters())

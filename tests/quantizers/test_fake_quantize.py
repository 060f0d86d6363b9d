"""Fake quantization: the forward against the grid, the backward against formulas and autograd."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid, Kind, dequantize, quantize
from qtool.numerics.ranges import SMALLEST_SCALE
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

GRIDS = [
    IntegerGrid(bits, kind)
    for kind in ("narrow", "full", "mid_rise", "unsigned", "asymmetric")
    for bits in range(1, 9)
    if (bits == 1) <= (kind == "mid_rise") and not (bits == 8 and kind == "mid_rise")
]
SOME_GRIDS = [
    IntegerGrid(1, "mid_rise"),
    IntegerGrid(3, "mid_rise"),
    IntegerGrid(4, "narrow"),
    IntegerGrid(2, "full"),
    IntegerGrid(4, "unsigned"),
]
BLEND = {"range": {"name": "absmax"}, "blend": {"name": "linear", "start": 0.0, "stop": 1.0}}

each_grid = pytest.mark.parametrize("grid", SOME_GRIDS, ids=str)
EACH = [
    (grid, name)
    for grid in [*SOME_GRIDS, IntegerGrid(1, "unsigned")]
    for name in ESTIMATORS.names()
    if grid.bits == 1 or name not in SIGN_FAMILY
]
each_estimator = pytest.mark.parametrize(("grid", "estimator"), EACH, ids=str)


def any_settings(data: dict[str, Any]) -> WeightQuantization | ActivationQuantization:
    """Return settings for whichever side they fit: some grids are of one side only."""
    try:
        return WeightQuantization.model_validate(data)
    except ValueError:
        return ActivationQuantization.model_validate(data)


def quantizer(
    grid: IntegerGrid, scale: Tensor | float, zero_point: float = 0.0, **settings: Any
) -> FakeQuantize:
    made = FakeQuantize(any_settings({"bits": grid.bits} | settings), grid)
    made.scale.data = torch.as_tensor(scale, dtype=torch.float32)
    made.zero_point.fill_(zero_point)
    return made


def values(grid: IntegerGrid, scale: float, zero_point: float = 0.0, count: int = 400) -> Tensor:
    """Return values spread over the grid and beyond, on its levels and on its thresholds."""
    low, high = grid.qmin - zero_point - 2, grid.qmax - zero_point + 2
    random = torch.rand(count, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    special = torch.arange(low, high + 0.5, 0.5)
    return (torch.cat([random, special]) - grid.offset) * scale


def gradient_of(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(7))


def numpy_lsq(
    x: Tensor, g: Tensor, s: float, grid: IntegerGrid, shared: int
) -> np.ndarray[Any, Any]:
    """Return LSQ's gradient of one scale: round(v) - v inside, the bound outside, / sqrt(N Q)."""
    v = x.double().numpy() / s  # exact where s is a power of two: no tie is decided otherwise
    low, high = grid.qmin - grid.offset, grid.qmax - grid.offset
    rounded = np.rint(v + grid.offset) - grid.offset
    inside = np.where(v < low, low, np.where(v > high, high, rounded - v))
    return np.sum(g.double().numpy() * inside) / np.sqrt(shared * grid.qmax)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_forward_is_quantize_and_dequantize_bit_for_bit(
    grid: IntegerGrid, dtype: torch.dtype
) -> None:
    z = grid.qmax // 3 if grid.kind == "asymmetric" else 0
    x = values(grid, 0.37, z).to(dtype)
    scale = torch.tensor(0.37)
    expected = dequantize(quantize(x.float(), scale, z, grid), scale, z, grid).to(dtype)
    found = quantizer(grid, scale, z).round_to_grid(x)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    if dtype == torch.float32:
        assert len(found.unique()) == grid.qmax - grid.qmin + 1


def test_bfloat16_is_rounded_in_float32() -> None:
    grid, x = IntegerGrid(8, "full"), torch.tensor(1.0, dtype=torch.bfloat16)
    scale = torch.tensor(1 / 100.4)  # 100.4 is 100.5 in bfloat16, and the level 100 / 100.4 is 1
    found = quantizer(grid, scale).round_to_grid(x)
    assert found == (100 * scale).to(torch.bfloat16)


def test_scales_per_channel_round_each_channel_by_its_own() -> None:
    grid = IntegerGrid(4, "narrow")
    x = values(grid, 1.0).reshape(1, -1, 1).repeat(3, 1, 2)
    scale = torch.tensor([0.5, 1.0, 3.0]).reshape(3, 1, 1)
    found = quantizer(grid, scale).round_to_grid(x)
    alone = [quantizer(grid, s.item()).round_to_grid(row) for s, row in zip(scale, x, strict=True)]
    assert torch.equal(found, torch.stack(alone))


def test_rounding_leaves_its_input_alone() -> None:
    x = values(IntegerGrid(3, "mid_rise"), 0.2)
    before = x.clone()
    quantizer(IntegerGrid(3, "mid_rise"), 0.2).round_to_grid(x)
    assert torch.equal(x, before)


@each_estimator
def test_the_backward_is_the_estimator_in_steps(grid: IntegerGrid, estimator: str) -> None:
    x = values(grid, 0.25).requires_grad_()
    g = gradient_of(x)
    quantizer(grid, 0.25, estimator=estimator).round_to_grid(x).backward(g)
    u = x.detach() / 0.25 + (0.5 if grid.kind == "mid_rise" else 0.0)
    expected = ESTIMATORS.build(estimator)(g, u, grid.qmin, grid.qmax)
    largest = float(expected.abs().max())
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("z", [0, 3, 15])
def test_the_bounds_of_an_asymmetric_grid_are_counted_from_the_zero_point(z: int) -> None:
    grid = IntegerGrid(4, "asymmetric")
    x = values(grid, 0.5, z).requires_grad_()
    made = quantizer(grid, 0.5, z, range="absmax", estimator="clipped_relu")
    made.round_to_grid(x).sum().backward()
    inside = (x > (0 - z) * 0.5) & (x <= (15 - z) * 0.5)
    assert x.grad is not None
    assert torch.equal(x.grad, inside.float())


def test_a_bfloat16_input_gets_a_bfloat16_gradient() -> None:
    grid = IntegerGrid(4, "narrow")
    x = values(grid, 0.5).to(torch.bfloat16).requires_grad_()
    quantizer(grid, 0.5).round_to_grid(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert torch.equal(x.grad.float(), (x.float().abs() <= 3.5).float())


@each_estimator
def test_a_learned_scale_has_the_gradient_of_lsq_whatever_the_estimator(
    grid: IntegerGrid, estimator: str
) -> None:
    x = values(grid, 0.25)
    g = gradient_of(x)
    made = quantizer(grid, 0.25, estimator=estimator)
    made.round_to_grid(x).backward(g)
    expected = numpy_lsq(x, g, 0.25, grid, x.numel())
    np.testing.assert_allclose(made.scale.grad, expected, rtol=1e-4, atol=1e-6)


def test_all_values_of_the_batch_that_share_a_scale_are_counted() -> None:
    grid = IntegerGrid(4, "unsigned")
    x = torch.full((8, 5, 3, 3), 100.0)  # everything saturates: the sum is N * high
    made = quantizer(grid, 1.0)
    made.round_to_grid(x).sum().backward()
    count = 8 * 5 * 3 * 3
    np.testing.assert_allclose(made.scale.grad, count * 15 / np.sqrt(count * 15), rtol=1e-5)


@each_grid
def test_scales_per_channel_have_gradients_of_their_own(grid: IntegerGrid) -> None:
    scales = [0.125, 0.5, 4.0]
    x = torch.stack([values(grid, s) for s in scales]).unsqueeze(2)
    g = gradient_of(x)
    made = quantizer(grid, torch.tensor(scales).reshape(3, 1, 1))
    made.round_to_grid(x).backward(g)
    assert made.scale.grad is not None
    assert made.scale.grad.shape == (3, 1, 1)
    expected = [
        numpy_lsq(x[c], g[c], s, grid, x.numel() // 3)
        for c, s in enumerate(scales)  # N is the values of one channel
    ]
    np.testing.assert_allclose(made.scale.grad.flatten(), expected, rtol=1e-4, atol=1e-6)


@each_estimator
@pytest.mark.parametrize("per_channel", [False, True])
def test_chain_rule_is_what_autograd_finds_through_the_estimator(
    grid: IntegerGrid, estimator: str, per_channel: bool
) -> None:
    x = torch.stack([values(grid, 0.3), values(grid, 0.8)])
    g = gradient_of(x)
    start = torch.tensor([[0.3], [0.8]]) if per_channel else torch.tensor(0.5)
    made = quantizer(grid, start, estimator=estimator, scale_gradient="chain_rule")
    fake_x = x.clone().requires_grad_()
    made.round_to_grid(fake_x).backward(g)

    real_x, scale = x.clone().requires_grad_(), start.clone().requires_grad_()
    u = real_x / scale + grid.offset
    rounded = torch.clamp(torch.round(u), grid.qmin, grid.qmax).detach()
    slope = ESTIMATORS.build(estimator)(g, u.detach(), grid.qmin, grid.qmax) / g
    trick = slope * u + (rounded - slope * u).detach()
    ((trick - grid.offset) * scale).backward(g)

    assert fake_x.grad is not None
    assert real_x.grad is not None
    assert scale.grad is not None
    np.testing.assert_allclose(fake_x.grad, real_x.grad, rtol=1e-5, atol=1e-6)
    shared = x.numel() // scale.numel()
    expected = scale.grad / np.sqrt(shared * grid.qmax)
    np.testing.assert_allclose(made.scale.grad, expected, rtol=2e-4, atol=1e-5)


def test_chain_rule_and_lsq_differ_where_the_estimator_is_not_straight_through() -> None:
    grid, found = IntegerGrid(4, "narrow"), {}
    for how in ("lsq", "chain_rule"):
        made = quantizer(grid, 0.3, estimator="identity", scale_gradient=how)
        made.round_to_grid(torch.tensor([-9.0, 8.0, 0.1])).sum().backward()
        found[how] = made.scale.grad
    assert not torch.isclose(found["lsq"], found["chain_rule"])


def test_a_scale_that_is_not_learned_is_no_parameter() -> None:
    grid = IntegerGrid(4, "narrow")
    assert not dict(quantizer(grid, 1.0, range="absmax").named_parameters())
    assert set(dict(quantizer(grid, 1.0).named_parameters())) == {"scale"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bad", [-1.0, 0.0, 1e-12])
def test_a_learned_scale_never_acts_as_if_below_the_smallest(bad: float, training: bool) -> None:
    grid, x = IntegerGrid(4, "unsigned"), torch.tensor([-1.0, 0.0, 2.0])
    found = quantizer(grid, bad).train(training).round_to_grid(x)
    expected = quantizer(grid, SMALLEST_SCALE).round_to_grid(x)
    assert torch.equal(found, expected)


def test_a_training_step_brings_a_learned_scale_back_above_zero() -> None:
    made = quantizer(IntegerGrid(4, "unsigned"), torch.tensor([[-1.0], [0.5]]))
    made.round_to_grid(torch.ones(2, 3))
    assert made.scale.flatten().tolist() == [np.float32(SMALLEST_SCALE), 0.5]


@pytest.mark.parametrize("learned", [True, False])
def test_two_passes_before_one_backward_have_the_gradients_of_each(learned: bool) -> None:
    grid = IntegerGrid(4, "narrow")
    x = values(grid, 0.3).requires_grad_()
    made = quantizer(grid, 0.3, range="learned" if learned else "absmax")
    (made.round_to_grid(x).sum() + made.round_to_grid(2 * x).sum()).backward()
    both = x.grad
    x.grad = None
    made.round_to_grid(x).sum().backward()
    made.round_to_grid(2 * x).sum().backward()
    assert both is not None
    assert x.grad is not None
    assert torch.equal(both, x.grad)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 1.0])
def test_a_blend_mixes_values_and_its_gradient_is_the_float_share_alone(alpha: float) -> None:
    grid = IntegerGrid(3, "narrow")
    made = quantizer(grid, 0.3, **BLEND)
    made.set_progress(alpha)
    x = values(grid, 0.3).requires_grad_()
    g = gradient_of(x)
    found = made.round_to_grid(x)
    found.backward(g)
    x_hat = dequantize(quantize(x.detach(), made.scale, 0, grid), made.scale, 0, grid)
    expected = (1 - alpha) * x.detach().double() + alpha * x_hat.double()
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6, atol=1e-6)
    assert x.grad is not None
    assert torch.equal(x.grad, (1 - alpha) * g)
    if alpha in (0.0, 1.0):
        assert torch.equal(found, x if alpha == 0.0 else x_hat)


PASSED = {
    "straight_through": lambda u, low, high: (low <= u) & (u <= high),
    "identity": lambda u, low, high: np.ones_like(u),
    "relu": lambda u, low, high: u > low,
    "reverse_exponential": lambda u, low, high: (u > low) * np.exp(-(u - low) / (high - low)),
}  # d q / d w by formula


@pytest.mark.parametrize("name", PASSED)
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 1.0])
def test_a_blend_beside_an_estimator_passes_its_gradient_through_the_rounded_share(
    alpha: float, name: str
) -> None:
    """d/dw of (1 - alpha) w + alpha q(w), with dq/dw the estimator's; the forward is the blend's.

    On weights: what is passed is (1 - alpha) g + alpha g dq/dw, and alpha counts as it was in the
    forward pass.
    """
    grid = IntegerGrid(3, "narrow")
    made = quantizer(grid, 0.3, **BLEND, estimator=name)
    made.set_progress(alpha)
    x = values(grid, 0.3).requires_grad_()
    g = gradient_of(x)
    found = made.round_to_grid(x)
    made.set_progress(0.5)
    found.backward(g)
    alone = quantizer(grid, 0.3, **BLEND)
    alone.set_progress(alpha)
    assert torch.equal(found, alone.round_to_grid(x))
    u = (x.detach() / made.scale).double().numpy()
    slope = PASSED[name](u, grid.qmin, grid.qmax)
    expected = (1 - alpha) * g.double().numpy() + alpha * g.double().numpy() * slope
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, expected, rtol=1e-6, atol=1e-6)


def test_alpha_follows_the_schedule_and_starts_at_its_first_value() -> None:
    cubic = {"name": "cubic", "start": 0.2, "stop": 1.0, "window": [0.0, 0.8]}
    made = quantizer(IntegerGrid(4, "narrow"), 1.0, range="absmax", blend=cubic)
    seen = [float(made.alpha)]
    for progress in (0.0, 0.4, 0.8, 1.0):
        made.set_progress(progress)
        seen.append(float(made.alpha))
    np.testing.assert_allclose(seen, [0.2, 0.2, 0.2 + 0.8 * 0.875, 1.0, 1.0], rtol=1e-6)


def test_progress_moves_nothing_without_a_blend() -> None:
    made = quantizer(IntegerGrid(4, "narrow"), 1.0)
    made.set_progress(0.3)
    assert made.alpha == 1.0


def test_a_blend_keeps_bfloat16() -> None:
    made = quantizer(IntegerGrid(4, "narrow"), 1.0, **BLEND)
    made.set_progress(0.5)
    assert made.round_to_grid(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["full", "unsigned", "asymmetric"])
def test_the_extra_state_carries_the_grid(kind: Kind) -> None:
    source = quantizer(IntegerGrid(4, kind), 0.5)
    source.ready = True
    target = FakeQuantize(WeightQuantization(bits=4), None)
    target.load_state_dict(source.state_dict())
    assert (target.ready, target.grid) == (True, IntegerGrid(4, kind))


def test_an_undecided_grid_says_so() -> None:
    with pytest.raises(RuntimeError, match="not known before the first forward pass"):
        FakeQuantize(WeightQuantization(bits=4), None).round_to_grid(torch.ones(2))


def test_a_copy_is_independent() -> None:
    source = quantizer(IntegerGrid(4, "narrow"), 0.5)
    twin = copy.deepcopy(source)
    x = values(IntegerGrid(4, "narrow"), 0.5)
    assert torch.equal(twin.round_to_grid(x), source.round_to_grid(x))
    twin.round_to_grid(x).sum().backward()
    assert isinstance(twin.scale, nn.Parameter)
    assert source.scale.grad is None


def test_an_empty_batch_stays_empty() -> None:
    x = torch.zeros(0, 3, requires_grad=True)
    made = quantizer(IntegerGrid(4, "narrow"), 0.5)
    found = made.round_to_grid(x)
    found.sum().backward()
    assert found.shape == (0, 3)
    assert made.scale.grad == 0


def test_the_printed_form_tells_width_grid_range_and_estimator() -> None:
    made = quantizer(IntegerGrid(4, "narrow"), 1.0, range="learned", estimator="relu")
    assert made.extra_repr() == "4 bits, narrow, learned, relu"
    blended = quantizer(IntegerGrid(3, "full"), 1.0, **BLEND)
    assert blended.extra_repr() == "3 bits, full, absmax, blend linear(start=0.0, stop=1.0)"
    both = quantizer(IntegerGrid(3, "full"), 1.0, **BLEND, estimator="identity")
    assert both.gradient == "identity, blend linear(start=0.0, stop=1.0)"

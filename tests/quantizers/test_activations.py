"""Scales of activations: what the first values decide, and what follows them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.numerics.ranges import RANGES
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.samples import SAMPLE
from qtool.settings.tensors import ActivationQuantization

NEEDED = {"fixed": {"scale": 0.1}}  # parameters without a default
RULES = [name for name in RANGES.names() if RANGES.facts(name).serves("activations")]
FOLLOW = {"name": "ema_min_max", "decay": 0.9, "every": 1}


def quantizer(**keys: Any) -> ActivationQuantizer:
    return ActivationQuantizer(ActivationQuantization.model_validate({"bits": 4} | keys))


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def span(low: float, high: float) -> Tensor:
    """Return values whose extremes are `low` and `high`."""
    return torch.linspace(low, high, 11).reshape(1, 11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("training", [True, False])
def test_the_grid_is_unsigned_where_no_value_is_negative(rule: str, training: bool) -> None:
    made = quantizer(range={"name": rule} | NEEDED.get(rule, {})).train(training)
    assert made.grid is None
    made(values(4, 9).relu())
    assert made.known_grid == IntegerGrid(4, "unsigned")


def mean_square(x: Tensor, made: ActivationQuantizer) -> float:
    return float((made(x).detach() - x).double().square().mean())


def hardswish(x: Tensor) -> Tensor:
    return nn.functional.hardswish(x)


@pytest.mark.parametrize("rule", ["learned", "absmax", "mse", "percentile", "ema_min_max"])
def test_one_value_a_little_below_zero_does_not_cost_half_of_the_levels(rule: str) -> None:
    made = quantizer(range=rule)
    x = values(3, 2 * SAMPLE).abs() + 0.1
    x[1, 12345] = -0.01
    made(x)
    assert made.known_grid == IntegerGrid(4, "unsigned")


@pytest.mark.parametrize("rule", ["learned", "absmax", "mse", "min_max", "pact", "mean_abs"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_auto_takes_the_grid_of_the_smallest_error(rule: str, bits: int) -> None:
    for x in (2 * values(4, 999), hardswish(3 * values(4, 999)), -values(4, 999).abs()):
        kinds = ["unsigned", "full"] + ["asymmetric"] * (rule == "min_max")
        errors = {
            kind: mean_square(x, quantizer(bits=bits, range=rule, grid=kind)) for kind in kinds
        }
        made = quantizer(bits=bits, range=rule)
        error = mean_square(x, made)
        assert error == errors[made.known_grid.kind]
        # the simpler one wins where the others are not clearly better
        for kind in kinds[kinds.index(made.known_grid.kind) + 1 :]:
            assert errors[kind] >= 0.45 * error
        for kind in kinds[: kinds.index(made.known_grid.kind)]:
            assert errors[kind] > error


def test_values_after_hardswish_keep_their_levels_at_two_bits() -> None:
    made = quantizer(bits=2)
    made(hardswish(2 * values(64, 64)))
    assert made.known_grid == IntegerGrid(2, "unsigned")


def test_a_zero_point_is_taken_where_it_halves_the_error_and_only_then() -> None:
    for rule in ("min_max", "ema_min_max"):
        made = quantizer(bits=8, range=rule)
        made(hardswish(3 * values(64, 64)))
        assert made.known_grid == IntegerGrid(8, "asymmetric")
        assert made(torch.zeros(1)) == 0
        made = quantizer(bits=8, range=rule)
        made(values(64, 64) + 0.05)
        assert made.known_grid == IntegerGrid(8, "full")


@pytest.mark.parametrize(
    "keys",
    [{}, {"rounding": "ceil"}, {"rounding": "additive_noise"}, {"place": "relu_outputs"}],
)
def test_auto_takes_no_zero_point_that_nothing_finds_or_serves(keys: dict[str, Any]) -> None:
    ranges = ["learned", "absmax"] if not keys else ["min_max"]
    for rule in ranges:
        made = quantizer(bits=8, range=rule, **keys)
        made(-values(64, 64).abs())
        assert made.known_grid == IntegerGrid(8, "full")
        assert made.offset is None


def test_the_grid_is_chosen_once_and_zeros_choose_nothing() -> None:
    made = quantizer(bits=8, range="absmax")
    for x, kind in ((torch.zeros(9), "unsigned"), (values(9), "full"), (values(9).abs(), "full")):
        made.observer.watching = True
        made(x)
        made.observer.watching = False
        made.settle()
        assert made.known_grid.kind == kind


def test_a_restored_grid_is_not_chosen_again() -> None:
    source, target = quantizer(range="min_max"), quantizer(range="min_max")
    source(hardswish(3 * values(64, 64)))
    target.load_state_dict(source.state_dict())
    target.observer.watching = True
    target(values(9).abs())
    target.settle()
    assert target.known_grid == source.known_grid


def test_a_decided_grid_stays() -> None:
    made = quantizer(range="ema_min_max")
    made(span(0, 1))
    made(span(-1, 1))
    assert made.known_grid == IntegerGrid(4, "unsigned")


@pytest.mark.parametrize("grid", ["unsigned", "full", "narrow"])
def test_a_grid_that_is_named_is_taken(grid: Any) -> None:
    made = quantizer(grid=grid)
    made(values(4, 9))
    assert made.known_grid == IntegerGrid(4, grid)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_the_first_forward_sets_the_scale_by_the_rule(rule: str, training: bool) -> None:
    x = values(4, 3, 5)
    params = NEEDED.get(rule, {})
    made = quantizer(range={"name": rule} | params).train(training)
    x_hat = made(x)
    grid = IntegerGrid(4, "unsigned" if rule == "half_normal" else "full")
    expected = RANGES.build(rule, **params)(x.reshape(1, -1), grid)[0]
    np.testing.assert_allclose(made.scale.detach(), expected, rtol=1e-6)
    assert torch.equal(x_hat, dequantize(quantize(x, made.scale, 0, grid), made.scale, 0, grid))


def test_a_learned_scale_starts_at_two_means_over_the_root_of_high() -> None:
    x = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    made = quantizer()
    made(x)
    np.testing.assert_allclose(made.scale.detach(), 2 * 3.0 / np.sqrt(15), rtol=1e-6)


def test_a_large_tensor_is_sampled_evenly_and_keeps_its_extremes() -> None:
    x = torch.linspace(0, 1, 5 * SAMPLE + 3)
    learned, absmax = quantizer(), quantizer(range="absmax")
    x[SAMPLE + 1] = 40.0
    for made in (learned, absmax):
        made(x)
    np.testing.assert_allclose(learned.scale.detach(), 2 * 0.5 / np.sqrt(15), rtol=1e-2)
    np.testing.assert_allclose(absmax.scale, 40 / 15, rtol=1e-6)


@pytest.mark.parametrize("rule", ["learned", "absmax", "mse"])
def test_other_values_do_not_move_the_scale_later(rule: str) -> None:
    made = quantizer(range=rule)
    made(values(4, 9))
    scale = made.scale.detach().clone()
    made(5 * values(4, 9))
    assert torch.equal(made.scale.detach(), scale)


def test_extremes_follow_by_a_moving_average_in_training() -> None:
    made = quantizer(range=FOLLOW, grid="asymmetric")
    batches = [(-2.0, 6.0), (-1.0, 8.0), (-4.0, 2.0)]
    low, high = batches[0]
    for index, (smallest, largest) in enumerate(batches):
        made(span(smallest, largest))
        if index:
            low, high = 0.9 * low + 0.1 * smallest, 0.9 * high + 0.1 * largest
        np.testing.assert_allclose(made.observed, [low, high], rtol=1e-5)
        np.testing.assert_allclose(made.scale, (high - low) / 15, rtol=1e-5)
        assert made.zero_point == round(-low / ((high - low) / 15))


def test_only_every_so_many_steps_are_looked_at_and_a_checkpoint_knows_which_is_next() -> None:
    made = quantizer(range=FOLLOW | {"every": 3}, grid="asymmetric")
    made(span(-2, 6))  # sets the range
    low, high, counted = -2.0, 6.0, []
    for step in range(7):
        made(span(-3 - step, 9))
        if step % 3 == 0:
            kept = 0.9**3
            low, high = kept * low + (1 - kept) * (-3 - step), kept * high + (1 - kept) * 9
        counted.append(made.observed.tolist())
        np.testing.assert_allclose(counted[-1], [low, high], rtol=1e-5)
        if step == 3:
            again = quantizer(range=FOLLOW | {"every": 3}, grid="asymmetric")
            again.load_state_dict(made.state_dict())
            made = again
    assert counted[0] == counted[1] == counted[2] != counted[3]


@pytest.mark.parametrize("grid", ["full", "narrow"])
def test_a_symmetric_grid_follows_the_larger_extreme(grid: str) -> None:
    made = quantizer(range=FOLLOW, grid=grid)
    made(span(-2, 1))
    np.testing.assert_allclose(made.scale, 2 / 7, rtol=1e-6)
    made(span(-2, 31))
    np.testing.assert_allclose(made.scale, (0.9 * 1 + 0.1 * 31) / 7, rtol=1e-6)
    assert made.zero_point == 0


def test_nothing_follows_in_evaluation() -> None:
    made = quantizer(range=FOLLOW, grid="asymmetric")
    made(span(-2, 6))
    before = {name: tensor.clone() for name, tensor in made.named_buffers()}
    made.eval()
    made(span(-50, 50))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.named_buffers())


def test_an_asymmetric_grid_rounds_with_its_zero_point() -> None:
    made = quantizer(range=FOLLOW, grid="asymmetric")
    x = span(-2, 6)
    grid, x_hat = IntegerGrid(4, "asymmetric"), made(x)
    assert made.zero_point == 4  # 2 / (8 / 15) = 3.75
    assert torch.equal(
        x_hat,
        dequantize(quantize(x, made.scale, made.zero_point, grid), made.scale, 4, grid),
    )
    assert made(torch.zeros(1)) == 0


def test_values_far_from_zero_still_leave_zero_on_the_grid() -> None:
    made = quantizer(range=FOLLOW, grid="asymmetric")
    made(span(3, 6))
    assert made.zero_point == 0
    np.testing.assert_allclose(made.scale, 6 / 15, rtol=1e-6)


def test_watching_collects_batches_and_passes_values_on() -> None:
    made = quantizer(range="absmax")
    made.observer.watching = True
    for factor in (1.0, 3.0, 2.0):
        x = factor * values(4, 9)
        assert made(x) is x
    assert made.observer.watched
    assert not made.ready
    made.settle()
    assert (made.ready, made.observer.watched) == (True, False)
    np.testing.assert_allclose(made.scale, 3 * values(4, 9).abs().max() / 7, rtol=1e-6)


def test_watched_extremes_are_averaged_over_batches() -> None:
    made = quantizer(range=FOLLOW, grid="asymmetric")
    made.observer.watching = True
    for low, high in ((-2.0, 6.0), (-1.0, 8.0), (-4.0, 2.0)):
        made(span(low, high))
    made.settle()
    low = 0.9 * (0.9 * -2 + 0.1 * -1) + 0.1 * -4
    high = 0.9 * (0.9 * 6 + 0.1 * 8) + 0.1 * 2
    np.testing.assert_allclose(made.observed, [low, high], rtol=1e-5)
    np.testing.assert_allclose(made.scale, (high - low) / 15, rtol=1e-5)


def test_watching_again_starts_anew() -> None:
    made = quantizer(range=FOLLOW, grid="asymmetric")
    made(span(-100, 100))
    made.observer.watching = True
    made(span(-2, 6))
    made.settle()
    assert made.observed.tolist() == [-2, 6]


def test_a_learned_scale_is_set_in_place() -> None:
    made = quantizer()
    parameter = made.scale
    made(values(4, 9))
    assert made.scale is parameter
    assert parameter.requires_grad
    assert parameter != 1.0


def test_bfloat16_values_set_a_float32_scale() -> None:
    made = quantizer(range="ema_min_max")
    x = values(4, 9).to(torch.bfloat16)
    assert made(x).dtype == torch.bfloat16
    assert made(x).dtype == torch.bfloat16
    assert made.scale.dtype == torch.float32
    np.testing.assert_allclose(made.scale, x.float().abs().max() / 7, rtol=1e-6)


@pytest.mark.parametrize("keys", [{}, {"range": FOLLOW, "grid": "asymmetric"}, {"range": "mse"}])
def test_a_checkpoint_brings_back_every_bit(keys: dict[str, Any]) -> None:
    source, target = quantizer(**keys), quantizer(**keys)
    source(values(4, 9))
    source(2 * values(4, 9))
    target.load_state_dict(source.state_dict())
    x = 3 * values(4, 9)
    assert torch.equal(target.eval()(x), source.eval()(x))
    assert target.known_grid == source.known_grid
    source.train()
    target.train()
    assert torch.equal(target(x), source(x))  # goes on as the other does

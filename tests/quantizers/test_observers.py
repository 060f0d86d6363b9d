"""What an observer shows of many values: a sample that stands for all of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.samples import SAMPLE, STRETCH, TAIL, Sample, even_sample
from qtool.settings.tensors import ActivationQuantization

WIDTHS = [8, 16, 32, 64]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


def images(width: int) -> tuple[int, ...]:
    """Return a shape of images with more values than the sample holds."""
    return (2, SAMPLE * 3 // 4 // width**2 + 1, width, width)


def bright_column(width: int) -> Tensor:
    x = random(*images(width)).abs()
    x[..., width // 3] += 5
    return x


def gradient_along_rows(width: int) -> Tensor:
    return torch.linspace(0, 1, width).expand(images(width)) + 0.01 * random(*images(width))


def checkerboard(width: int) -> Tensor:
    row = torch.arange(width)
    return ((row + row.unsqueeze(1)) % 2).float().expand(images(width)).contiguous()


def saturated(width: int) -> Tensor:
    """Return what a ReLU6 makes: most of the largest values are equal."""
    return (4 * random(*images(width))).clamp(0, 6)


def channels_differ(width: int) -> Tensor:
    shape = images(width)
    return random(*shape).relu() * torch.logspace(-2, 1, shape[1]).view(-1, 1, 1)


STRUCTURES = [bright_column, gradient_along_rows, checkerboard, saturated, channels_differ]


def numpy_scale(rule: str, x: Tensor, grid: IntegerGrid) -> float:
    """Return a rule's scale from all values, in double precision."""
    values, high = np.abs(x.double().numpy()), float(grid.qmax)
    by_rule: dict[str, Callable[[], float]] = {
        "absmax": lambda: values.max() / high,
        "min_max": lambda: values.max() / high,
        "learned": lambda: 2 * values.mean() / np.sqrt(high),
        "mean_abs": lambda: values.mean(),
        "percentile": lambda: np.percentile(values, 99.9) / high,
    }
    return float(by_rule[rule]())


def settled(x: Tensor, rule: str, **keys: Any) -> ActivationQuantizer:
    keys = {"bits": 4, "range": rule} | keys
    made = ActivationQuantizer(ActivationQuantization.model_validate(keys))
    made.observer.watching = True
    made(x)
    made.settle()
    return made


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_scale_from_a_sample_is_that_from_all_values(
    structure: Callable[[int], Tensor], width: int
) -> None:
    x = structure(width)
    assert x.numel() > SAMPLE
    for rule in ("absmax", "min_max", "learned", "mean_abs", "percentile"):
        made = settled(x, rule, grid="unsigned" if x.amin() >= 0 else "full")
        expected = numpy_scale(rule, x, made.known_grid)
        tolerance = 1e-6 if rule in ("absmax", "min_max") else 0.02
        np.testing.assert_allclose(made.scale.detach(), expected, rtol=tolerance, err_msg=rule)


@pytest.mark.parametrize(("bits", "width"), [(2, 8), (8, 64)])
def test_a_searched_scale_from_a_sample_is_as_good_as_that_from_all_values(
    bits: int, width: int
) -> None:
    x = random(*images(width))
    made = settled(x, "mse", bits=bits, grid="full")
    largest, grid = float(x.abs().amax()) / made.known_grid.qmax, made.known_grid
    place = round(float(made.scale) / largest * 80)
    np.testing.assert_allclose(made.scale, largest * place / 80, rtol=1e-5)  # its own candidates

    def error(k: int) -> float:
        scale = torch.tensor(largest * k / 80)
        rounded = dequantize(quantize(x, scale, 0, grid), scale, 0, grid)
        return float((rounded - x).square().double().mean())

    near = [error(k) for k in range(max(1, place - 2), min(80, place + 2) + 1)]
    assert error(place) <= min(near) * (1 + 1e-3)


@pytest.mark.parametrize("rule", ["learned", "percentile", "mse"])
def test_the_memory_format_makes_no_difference(rule: str) -> None:
    x = bright_column(16)
    last = x.to(memory_format=torch.channels_last)
    assert last.stride() != x.stride()
    assert torch.equal(settled(x, rule).scale, settled(last, rule).scale)


def test_outliers_count_as_often_as_they_are_there() -> None:
    x = random(4 * SAMPLE).abs()
    x[::100_000] = 1e4  # eleven values; a sample that counted them as itself would quadruple them
    expected = 2 * float(x.double().mean()) / np.sqrt(15)
    np.testing.assert_allclose(settled(x, "learned").scale.detach(), expected, rtol=0.01)


@pytest.mark.parametrize("rule", ["learned", "absmax", "percentile"])
def test_all_values_of_many_batches_count_alike(rule: str) -> None:
    batches = [random(SAMPLE // 2 + 3) * 2.0**k for k in range(-3, 4)] + [random(50) * 100]
    made = ActivationQuantizer(ActivationQuantization.model_validate({"bits": 4, "range": rule}))
    made.observer.watching = True
    for batch in batches:
        made(batch.relu())
    assert sum(kept.values.numel() for kept in made.observer._samples) <= 2 * SAMPLE
    made.settle()
    x = torch.cat(batches).relu()
    expected = numpy_scale(rule, x, IntegerGrid(4, "unsigned"))
    tolerance = 1e-6 if rule == "absmax" else 0.02
    np.testing.assert_allclose(made.scale.detach(), expected, rtol=tolerance)


def test_a_sample_stands_for_each_of_its_values() -> None:
    for x in (random(2 * SAMPLE + 1), saturated(32), torch.ones(3 * SAMPLE), torch.arange(7.0)):
        sample = Sample.of(x, SAMPLE if x.numel() > 7 else 3)
        rows, weights = sample.weighed()
        assert rows.shape == weights.shape
        np.testing.assert_allclose(weights.double().sum(), x.numel(), rtol=1e-5)
        assert {float(x.amin()), float(x.amax())} <= set(rows[:2].tolist())


@pytest.mark.parametrize("count", [TAIL * 64 + 1, STRETCH + 1, 3 * STRETCH - 5])
def test_the_tail_holds_the_values_of_the_largest_size_wherever_they_are(count: int) -> None:
    x = random(count)
    x[-7:] *= 9
    tail = Sample.of(x, SAMPLE).tail
    assert len(tail) == min(TAIL, count // 64)
    assert torch.equal(tail.abs(), x.abs().sort(descending=True).values[: len(tail)])
    assert set(tail.tolist()) <= set(x.tolist())


@pytest.mark.parametrize("width", [7, 64, 1000])
def test_an_even_sample_takes_every_column_alike(width: int) -> None:
    count, size = 640_000, 50_000
    columns = torch.arange(count) % width
    taken = torch.bincount(even_sample(columns, size), minlength=width).double().numpy()
    # as many as chance would take, and no more; a stride takes some columns only
    assert np.abs(taken - size / width).max() < 5 * np.sqrt(size / width)


def test_sampling_touches_no_random_state_and_is_the_same_each_time() -> None:
    x, state = bright_column(8), torch.get_rng_state()
    first, second = settled(x, "learned").scale, settled(x, "learned").scale
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rule", ["learned", "absmax", "mse", "percentile", "min_max"])
def test_values_that_are_all_zero_start_from_those_of_a_unit_range(rule: str) -> None:
    made = settled(torch.zeros(4, 9), rule, grid="unsigned")
    unit = torch.linspace(0, 1, 10_001).reshape(1, -1)
    expected = settled(unit, rule, grid="unsigned").scale.detach()
    np.testing.assert_allclose(made.scale.detach(), expected, rtol=0.02)
    assert not made(torch.zeros(3)).any()

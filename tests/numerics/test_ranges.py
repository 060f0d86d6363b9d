"""Range rules against closed forms and a brute-force search."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.errors import RecipeError
from qtool.numerics.grid import IntegerGrid, Kind, dequantize, quantize
from qtool.numerics.ranges import (
    RANGES,
    SMALLEST_SCALE,
    absmax,
    ema_min_max,
    learned,
    min_max_to_scale,
    min_to_zero_point,
    mse,
)

GRIDS = [
    IntegerGrid(1, "mid_rise"),
    IntegerGrid(2, "mid_rise"),
    IntegerGrid(7, "mid_rise"),
    IntegerGrid(2, "narrow"),
    IntegerGrid(4, "narrow"),
    IntegerGrid(8, "narrow"),
    IntegerGrid(2, "full"),
    IntegerGrid(4, "full"),
    IntegerGrid(2, "unsigned"),
    IntegerGrid(8, "unsigned"),
]
ONE_BIT = IntegerGrid(1, "mid_rise")

each_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def sample(grid: IntegerGrid, rows: int = 5, columns: int = 200) -> Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    values = values * torch.logspace(-2, 2, rows).unsqueeze(1)
    return values if grid.signed else values.relu()


def rounded(rows: Tensor, scale: Tensor, grid: IntegerGrid) -> Tensor:
    column = scale.unsqueeze(1)
    return dequantize(quantize(rows, column, 0, grid), column, 0, grid)


def errors(rows: Tensor, scale: Tensor, grid: IntegerGrid) -> np.ndarray[Any, Any]:
    return (rounded(rows, scale, grid) - rows).square().mean(1).numpy()


def numpy_error(row: np.ndarray[Any, Any], scale: float, grid: IntegerGrid) -> float:
    q = np.clip(np.rint(row / scale + grid.offset), grid.qmin, grid.qmax)
    return float(np.mean(((q - grid.offset) * scale - row) ** 2))


@each_grid
def test_absmax_puts_the_outermost_level_at_the_largest_value(grid: IntegerGrid) -> None:
    rows = sample(grid)
    high = grid.qmax - (0.5 if grid.kind == "mid_rise" else 0)
    largest = rows.abs().numpy().max(1)
    np.testing.assert_allclose(absmax(rows, grid).numpy(), largest / high, rtol=1e-6)
    found = rounded(rows, absmax(rows, grid), grid).abs().numpy().max(1)
    np.testing.assert_allclose(found, largest, rtol=1e-6)


@each_grid
def test_absmax_saturates_nothing(grid: IntegerGrid) -> None:
    rows = sample(grid)
    scale = absmax(rows, grid)
    moved = (rounded(rows, scale, grid) - rows).abs().amax(1)
    assert (moved <= scale / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("grid", [g for g in GRIDS if g.signed], ids=str)
def test_absmax_looks_at_both_signs(grid: IntegerGrid, sign: float) -> None:
    rows = torch.tensor([[0.1, sign * 3.0, -0.2]])
    np.testing.assert_allclose(rounded(rows, absmax(rows, grid), grid)[0, 1], sign * 3.0, rtol=1e-6)


@each_grid
def test_mse_is_never_worse_than_absmax(grid: IntegerGrid) -> None:
    rows = sample(grid)
    assert (errors(rows, mse(rows, grid), grid) <= errors(rows, absmax(rows, grid), grid)).all()


@each_grid
def test_mse_comes_near_the_best_scale_of_a_fine_search(grid: IntegerGrid) -> None:
    rows = sample(grid)
    found = errors(rows, mse(rows, grid, candidates=400), grid)
    for row, error in zip(rows.double().numpy(), found, strict=True):
        widest = np.abs(row).max() / (grid.qmax - grid.offset)
        best = min(numpy_error(row, widest * k / 3000, grid) for k in range(30, 3001))
        assert best * (1 - 1e-4) <= error <= best * 1.05


def test_mse_tries_the_candidates_it_is_told_to() -> None:
    grid, rows = IntegerGrid(2, "narrow"), sample(IntegerGrid(2, "narrow"))
    found = mse(rows, grid, candidates=10).numpy()
    for row, scale in zip(rows.double().numpy(), found, strict=True):
        tried = [np.abs(row).max() * k / 10 for k in range(1, 11)]
        best = min(tried, key=lambda s, row=row: numpy_error(row, s, grid))
        np.testing.assert_allclose(scale, best, rtol=1e-6)


def test_mse_of_one_bit_finds_the_mean_of_absolute_values() -> None:
    rows = sample(ONE_BIT)
    level = mse(rows, ONE_BIT, candidates=1000).numpy() / 2
    # candidates lie max|x| / 1000 apart; the level is half the scale, the scale of absmax 2 max|x|
    half_a_candidate = rows.abs().numpy().max(1) / 1000 / 2
    assert (np.abs(level - rows.abs().numpy().mean(1)) <= half_a_candidate * 1.01).all()


@each_grid
def test_a_learned_scale_starts_as_lsq_does(grid: IntegerGrid) -> None:
    rows = sample(grid)
    expected = 2 * np.abs(rows.numpy()).mean(1) / np.sqrt(grid.qmax)
    np.testing.assert_allclose(learned(rows, grid).numpy(), expected, rtol=1e-5)


def test_one_bit_levels_lie_at_the_bound_or_at_the_mean() -> None:
    rows = torch.tensor([[1.0, -4.0, 0.5, 0.5]])
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    assert torch.equal(rounded(rows, absmax(rows, ONE_BIT), ONE_BIT), 4.0 * signs)
    assert torch.equal(rounded(rows, learned(rows, ONE_BIT), ONE_BIT), 1.5 * signs)


@pytest.mark.parametrize(
    ("bits", "kind", "expected"),
    [
        (4, "narrow", [6 / 7, 5 / 7, 2 / 7]),
        (4, "full", [6 / 7, 5 / 7, 2 / 7]),
        (4, "unsigned", [6 / 15, 5 / 15, 2 / 15]),
        (2, "mid_rise", [6 / 1.5, 5 / 1.5, 2 / 1.5]),
        (4, "asymmetric", [9 / 15, 5 / 15, 2 / 15]),  # the range always reaches zero
    ],
)
def test_ema_min_max_spans_the_smallest_and_the_largest_value(
    bits: int, kind: Kind, expected: list[float]
) -> None:
    rows = torch.tensor([[-6.0, 1.0, 3.0], [1.0, 2.0, 5.0], [-2.0, -1.0, -1.0]])
    found = ema_min_max(rows, IntegerGrid(bits, kind))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_asymmetric_grid_covers_its_values_and_holds_zero(bits: int) -> None:
    grid = IntegerGrid(bits, "asymmetric")
    low = torch.tensor([-6.0, -0.7, 0.0, -3.0])
    high = torch.tensor([3.0, 12.0, 5.0, 0.0])
    scale = min_max_to_scale(low, high, grid)
    z = min_to_zero_point(low, scale, grid)
    np.testing.assert_allclose(scale.numpy(), (high - low).numpy() / (2**bits - 1), rtol=1e-6)
    np.testing.assert_array_equal(z.numpy(), np.rint(-low.numpy() / scale.numpy()))
    assert ((z >= grid.qmin) & (z <= grid.qmax)).all()
    for end in (low, high):
        moved = dequantize(quantize(end, scale, z, grid), scale, z, grid) - end
        assert (moved.abs() <= scale / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", RANGES.names())
@each_grid
def test_every_rule_gives_each_row_its_own_positive_scale(name: str, grid: IntegerGrid) -> None:
    rows = sample(grid)
    scale = RANGES.build(name)(rows, grid)
    assert scale.shape == (len(rows),)
    assert (scale > 0).all()
    alone = [RANGES.build(name)(row.unsqueeze(0), grid) for row in rows]
    np.testing.assert_allclose(scale.numpy(), torch.cat(alone).numpy(), rtol=1e-6)
    doubled = RANGES.build(name)(2 * rows, grid)
    np.testing.assert_allclose(doubled.numpy(), 2 * scale.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", RANGES.names())
@each_grid
def test_a_row_of_zeros_has_the_smallest_scale(name: str, grid: IntegerGrid) -> None:
    rows = torch.stack([torch.zeros(9), torch.ones(9)])
    scale = RANGES.build(name)(rows, grid)
    assert scale[0] == np.float32(SMALLEST_SCALE)
    assert scale[1] > 0.001
    assert torch.isfinite(rounded(rows, scale, grid)).all()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("mse", {"candidates": 1}, "candidates: 1 is less than 2"),
        ("mse", {"candidates": 1001}, "candidates: 1001 is more than 1000"),
        ("mse", {"candidates": 80.0}, "candidates: 80.0 is not a whole number"),
        ("ema_min_max", {"decay": 1.0}, "decay: 1.0 is not less than 1.0"),
        ("ema_min_max", {"decay": -0.1}, "decay: -0.1 is less than 0.0"),
        ("absmax", {"decay": 0.9}, "decay: absmax has no parameter decay; it takes none"),
    ],
)
def test_parameters_out_of_range_are_refused(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"^{message}$"):
        RANGES.build(name, **params)

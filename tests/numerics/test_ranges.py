"""Range rules against NumPy formulas, closed forms and a brute-force search."""

import re
from collections.abc import Callable
from functools import lru_cache
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
    learned,
    min_max_to_scale,
    min_to_zero_point,
    mse,
    ppq,
    refine_scale,
    start_of_zeros,
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
    IntegerGrid(8, "full"),
    IntegerGrid(2, "ternary"),
    IntegerGrid(1, "unsigned"),
    IntegerGrid(2, "unsigned"),
    IntegerGrid(8, "unsigned"),
    IntegerGrid(4, "asymmetric"),
]
ONE_BIT = IntegerGrid(1, "mid_rise")
Array = np.ndarray[Any, Any]


def high(grid: IntegerGrid) -> float:
    """Return the outermost level in steps, counted by hand."""
    return {
        "mid_rise": 2 ** (grid.bits - 1) - 0.5,
        "unsigned": 2**grid.bits - 1,
        "asymmetric": 2**grid.bits - 1,
    }.get(grid.kind, 2 ** (grid.bits - 1) - 1)


def spanned(row: Array, grid: IntegerGrid) -> float:
    if grid.kind == "asymmetric":
        return (max(row.max(), 0) - min(row.min(), 0)) / (2**grid.bits - 1)
    return np.abs(row).max() / high(grid)


@lru_cache
def normal_sample() -> Array:
    """Return an even sample of N(0, 1): the midpoints of 200,000 cells, with their densities."""
    edges = np.linspace(-8, 8, 200_001)
    x = (edges[1:] + edges[:-1]) / 2
    return np.stack([x, np.exp(-(x**2) / 2) * (edges[1] - edges[0]) / np.sqrt(2 * np.pi)])


def normal_error(scale: float, grid: IntegerGrid, rounding: Callable[..., Array]) -> float:
    x, density = normal_sample()[:, 0 if grid.signed else 100_000 :]
    q = np.clip(rounding(x / scale + grid.offset), grid.qmin, grid.qmax)
    return float(np.sum(density * ((q - grid.offset) * scale - x) ** 2) * (2 - grid.signed))


@lru_cache
def best_for_normal(grid: IntegerGrid, rounding: Callable[..., Array] = np.rint) -> float:
    """Return the scale of the smallest error, by three ever finer searches."""
    low, top = 0.01 / high(grid), 5 / high(grid)
    for _ in range(3):
        tried = np.linspace(low, top, 61)
        best = int(np.argmin([normal_error(s, grid, rounding) for s in tried]))
        low, top = tried[max(best - 1, 0)], tried[min(best + 1, 60)]
    return float((low + top) / 2)


PUBLISHED = {1: 1.2221, 2: 0.6511, 4: 0.1946}
# a rule, one row and a grid -> its scale; searches are tested by their errors instead
FORMULAS: dict[str, Callable[[Array, IntegerGrid], float]] = {
    "absmax": lambda row, grid: np.abs(row).max() / high(grid),
    "min_max": spanned,
    "ema_min_max": spanned,
    "percentile": lambda row, grid: np.percentile(np.abs(row), 99.9) / high(grid),
    "half_normal": lambda _, grid: (
        PUBLISHED[grid.bits]
        if grid.kind == "unsigned" and grid.bits in PUBLISHED
        else best_for_normal(grid)
    ),
    "mean_abs": lambda row, grid: np.abs(row).mean() * (2 if grid.kind == "mid_rise" else 1),
    "learned": lambda row, grid: (
        spanned(row, grid)
        if grid.kind == "asymmetric"
        else 2 * np.abs(row).mean() / np.sqrt(np.ceil(high(grid)))
    ),
    "pact": lambda row, grid: np.abs(row).max() / high(grid),
    "qil": lambda _, grid: 1 / grid.qmax,
    "dorefa": lambda row, grid: (
        2 * np.abs(row).mean() if grid == IntegerGrid(1, "mid_rise") else 1 / high(grid)
    ),
    "fixed": lambda row, grid: 0.37,
    "he_uniform": lambda row, grid: np.sqrt(6 / len(row)) / high(grid),
}
FORMULAS["auto"] = FORMULAS["learned"]  # in training; elsewhere it is calibrated
SEARCHES = {"mse", "calibrated", "ppq"}
NEEDED: dict[str, dict[str, Any]] = {"fixed": {"scale": 0.37}}
BLIND = {
    "half_normal",
    "qil",
    "dorefa",
    "fixed",
    "he_uniform",
}  # rules that do not look at the values

each_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
each_formula = pytest.mark.parametrize("name", FORMULAS)
each_rule = pytest.mark.parametrize("name", RANGES.names())


def build(name: str) -> Callable[..., Tensor]:
    return RANGES.build(name, **NEEDED.get(name, {}))


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


def test_every_rule_has_a_formula_here_or_is_a_search() -> None:
    assert not set(FORMULAS) & SEARCHES
    assert set(FORMULAS) | SEARCHES == set(RANGES.names())


@each_formula
@each_grid
def test_a_rule_is_its_formula(name: str, grid: IntegerGrid) -> None:
    for rows in (sample(grid), sample(grid, columns=1), sample(grid, rows=1), 1e-3 * sample(grid)):
        found = build(name)(rows, grid).numpy()
        expected = [FORMULAS[name](row, grid) for row in rows.double().numpy()]
        tolerance = 2e-3 if name == "half_normal" else 2e-6  # there it is a sum over a sample
        np.testing.assert_allclose(found, np.maximum(expected, SMALLEST_SCALE), rtol=tolerance)


@each_grid
def test_absmax_puts_the_outermost_level_at_the_largest_value(grid: IntegerGrid) -> None:
    rows = sample(grid)
    largest = rows.abs().numpy().max(1)
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
def test_rules_of_extremes_span_the_smallest_and_the_largest_value(
    bits: int, kind: Kind, expected: list[float]
) -> None:
    rows = torch.tensor([[-6.0, 1.0, 3.0], [1.0, 2.0, 5.0], [-2.0, -1.0, -1.0]])
    names = ["min_max", "ema_min_max"] + ["learned"] * (kind == "asymmetric")
    for name in names:
        found = build(name)(rows, IntegerGrid(bits, kind))
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


@each_rule
@each_grid
def test_every_rule_gives_each_row_its_own_positive_scale(name: str, grid: IntegerGrid) -> None:
    rows = sample(grid)
    scale = build(name)(rows, grid)
    assert scale.shape == (len(rows),)
    assert scale.dtype == torch.float32
    assert (scale > 0).all()
    alone = [build(name)(row.unsqueeze(0), grid) for row in rows]
    np.testing.assert_allclose(scale.numpy(), torch.cat(alone).numpy(), rtol=1e-6)
    looks = name not in BLIND or (name == "dorefa" and grid == ONE_BIT)
    doubled = build(name)(2 * rows, grid)
    np.testing.assert_allclose(doubled.numpy(), (2 if looks else 1) * scale.numpy(), rtol=1e-6)


@each_rule
@each_grid
def test_a_row_of_zeros_has_the_smallest_scale(name: str, grid: IntegerGrid) -> None:
    rows = torch.stack([torch.zeros(9), torch.ones(9)])
    scale = build(name)(rows, grid)
    if name not in BLIND:
        assert scale[0] == np.float32(SMALLEST_SCALE)
    assert scale[1] > 0.001
    assert torch.isfinite(rounded(rows, scale, grid)).all()


@each_rule
@each_grid
def test_huge_and_tiny_values_have_a_finite_positive_scale(name: str, grid: IntegerGrid) -> None:
    rows = torch.tensor([[1e35, 3e34], [1e-30, 0.0], [1e-6, 2e-6], [1e35, 1e-35]])
    scale = build(name)(rows, grid)
    assert (scale >= np.float32(SMALLEST_SCALE)).all()
    assert torch.isfinite(rounded(rows, scale, grid)).all()


@each_rule
@each_grid
def test_one_value_alone_is_met_where_the_rule_looks_at_it(name: str, grid: IntegerGrid) -> None:
    rows = torch.tensor([[0.7], [3.0]])
    scale = build(name)(rows, grid)
    assert (scale > 0).all()
    if name in {"absmax", "min_max", "ema_min_max", "percentile", "mse", "ppq", "pact", "mean_abs"}:
        np.testing.assert_allclose(rounded(rows, scale, grid).numpy(), rows.numpy(), rtol=1e-6)


@each_rule
def test_float64_stays_float64(name: str) -> None:
    grid = IntegerGrid(4, "narrow")
    assert build(name)(sample(grid).double(), grid).dtype == torch.float64


@pytest.mark.parametrize("columns", [1, 2, 3, 10, 1001])
@pytest.mark.parametrize("share", [50.5, 75, 90.0, 99.0, 99.99, 100.0])
def test_a_percentile_is_numpys(columns: int, share: float) -> None:
    grid = IntegerGrid(4, "narrow")
    rows = sample(grid, columns=columns)
    found = RANGES.build("percentile", percentile=share)(rows, grid)
    expected = np.percentile(np.abs(rows.numpy()), share, axis=1) / 7
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_percentile_of_seventeen_million_values_is_found() -> None:
    values = torch.arange(17_000_000, dtype=torch.float32).flip(0) / 17_000_000
    found = RANGES.build("percentile")(values.unsqueeze(0), IntegerGrid(1, "unsigned"))
    np.testing.assert_allclose(found.numpy(), [0.999], rtol=1e-6)


def test_one_outlier_in_a_thousand_does_not_move_a_percentile() -> None:
    row = torch.linspace(-1, 1, 10_000).repeat(1, 1)
    row[0, ::2000] = 1000.0
    assert RANGES.build("percentile")(row, IntegerGrid(8, "narrow"))[0] * 127 <= 1.0


VECTOR = torch.tensor([[-2.0, -1.1, -0.3, 0.05, 0.4, 0.9, 1.7, 2.4]])


def test_ppq_from_one_start_meets_the_vector_worked_out_by_hand() -> None:
    grid = IntegerGrid(4, "narrow")
    first = ppq(VECTOR, grid, iterations=1, starts=1)
    settled = ppq(VECTOR, grid, starts=1)
    np.testing.assert_allclose(absmax(VECTOR, grid).numpy(), [0.34285714], rtol=1e-7)
    np.testing.assert_allclose([first[0], settled[0]], [0.33846154] * 2, rtol=1e-6)
    q = quantize(VECTOR, settled.unsqueeze(1), 0, grid)
    assert q.tolist() == [[-6, -3, -1, 0, 1, 3, 5, 7]]
    np.testing.assert_allclose(8 * errors(VECTOR, settled, grid), [0.030192], atol=5e-7)


def alternation(row: Array, grid: IntegerGrid, iterations: int) -> float:
    scale = np.abs(row).max() / high(grid)
    for _ in range(iterations):
        level = np.clip(np.rint(row / scale + grid.offset), grid.qmin, grid.qmax) - grid.offset
        scale = row @ level / (level @ level)
    return scale


@each_grid
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_ppq_from_one_start_is_the_alternation_in_numpy(grid: IntegerGrid, iterations: int) -> None:
    rows = sample(grid)
    expected = [alternation(row, grid, iterations) for row in rows.double().numpy()]
    found = ppq(rows, grid, iterations=iterations, starts=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@each_grid
def test_the_error_of_ppq_never_grows_with_an_iteration(grid: IntegerGrid) -> None:
    rows = sample(grid).double()
    last = errors(rows, absmax(rows, grid), grid)
    for iterations in range(1, 30):
        now = errors(rows, ppq(rows, grid, iterations=iterations, starts=1), grid)
        assert (now <= last * (1 + 1e-12)).all()
        last = now


@each_grid
def test_an_iteration_from_any_scale_never_makes_the_error_larger(grid: IntegerGrid) -> None:
    rows = sample(grid).double()
    for factor in (0.05, 0.3, 1.0, 1.7):
        start = factor * absmax(rows, grid)
        before = errors(rows, start, grid)
        after = errors(rows, refine_scale(rows, start, grid), grid)
        assert (after <= before * (1 + 1e-12)).all()


def test_ppq_has_more_than_one_start_where_a_single_bit_has_a_threshold() -> None:
    grid = IntegerGrid(1, "unsigned")
    rows = torch.tensor([[1.0] + [0.3] * 10])
    searched, alone = (errors(rows, ppq(rows, grid, starts=n), grid) for n in (8, 1))
    assert (searched < alone).all()


def test_a_scale_at_which_all_codes_are_zero_stays() -> None:
    rows = torch.tensor([[0.1, -0.2], [0.0, 0.0]])
    scale = torch.tensor([1.0, 0.5])
    assert torch.equal(refine_scale(rows, scale, IntegerGrid(4, "narrow")), scale)


@each_grid
def test_more_starts_are_never_worse_for_ppq_and_come_near_the_best_scale(
    grid: IntegerGrid,
) -> None:
    rows = sample(grid)
    found = errors(rows, ppq(rows, grid), grid)
    assert (found <= errors(rows, ppq(rows, grid, starts=1), grid) * (1 + 1e-6)).all()
    assert (found <= errors(rows, absmax(rows, grid), grid) * (1 + 1e-6)).all()
    for row, error in zip(rows.double().numpy(), found, strict=True):
        widest = np.abs(row).max() / high(grid)
        best = min(numpy_error(row, widest * k / 2000, grid) for k in range(20, 2001))
        assert error <= best * 1.1


@pytest.mark.parametrize(
    ("bits", "scale", "lost"),
    [(2, 1.2244, 0.19015), (3, 0.6513, 0.04695), (4, 0.3590, 0.01292), (8, 0.0370, 0.00011)],
)
def test_ppq_of_normal_values_settles_where_it_is_known_to(
    bits: int, scale: float, lost: float
) -> None:
    grid = IntegerGrid(bits, "narrow")
    rows = torch.randn(1, 300_000, generator=torch.Generator().manual_seed(0))
    once = ppq(rows, grid, starts=1)
    np.testing.assert_allclose(once.numpy(), [scale], rtol=0.05 if bits == 8 else 0.01)
    np.testing.assert_allclose(errors(rows, once, grid), [lost], rtol=0.15 if bits == 8 else 0.01)
    searched = errors(rows, ppq(rows, grid), grid)[0]
    assert searched <= {2: 0.1915, 3: 0.0473, 4: 0.0130, 8: 0.000095}[bits]


def test_ppq_of_one_bit_is_the_mean_of_absolute_values() -> None:
    rows = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)) + 0.1
    for starts in (1, 8):
        scale = ppq(rows, ONE_BIT, starts=starts)
        np.testing.assert_allclose(scale.numpy() / 2, rows.abs().numpy().mean(1), rtol=1e-5)
    np.testing.assert_allclose(errors(rows, scale, ONE_BIT), 1 - 2 / np.pi, rtol=0.05)


def test_ppq_keeps_a_scale_that_no_value_reaches() -> None:
    grid = IntegerGrid(4, "unsigned")  # nothing here is above zero
    rows = torch.tensor([[-3.0, -1.0], [0.0, 0.0]])
    expected = [np.float32(3 / 15), np.float32(SMALLEST_SCALE)]
    np.testing.assert_allclose(ppq(rows, grid).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("bits", "fit", "expected"),
    [
        (1, "round", 1.2240),
        (2, "round", 0.6508),
        (3, "round", 0.3534),
        (4, "round", 0.1933),
        (1, "published", 1.2221),
        (2, "published", 0.6511),
        (3, "published", 0.3534),
        (4, "published", 0.1946),
        (1, "ceil", 0.7979),  # the mean of the half-normal distribution
    ],
)
def test_half_normal_scales_are_the_published_ones_and_the_known_optima(
    bits: int, fit: str, expected: float
) -> None:
    rule = RANGES.build("half_normal", fit=fit)
    found = rule(torch.ones(2, 3), IntegerGrid(bits, "unsigned"))
    np.testing.assert_allclose(found.numpy(), [expected] * 2, atol=6e-5)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (IntegerGrid(1, "mid_rise"), 1.596),
        (IntegerGrid(2, "mid_rise"), 0.9957),
        (IntegerGrid(3, "mid_rise"), 0.5860),
        (IntegerGrid(4, "mid_rise"), 0.3352),
        (IntegerGrid(5, "mid_rise"), 0.1881),
    ],
)
def test_half_normal_on_a_mid_rise_grid_is_max_quantizer_of_1960(
    grid: IntegerGrid, expected: float
) -> None:
    """J. Max, Quantizing for minimum distortion, table II: uniform steps for N(0, 1)."""
    found = RANGES.build("half_normal")(torch.ones(1, 3), grid)
    np.testing.assert_allclose(found.numpy(), [expected], atol=6e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("fit", "rounding"), [("round", np.rint), ("ceil", np.ceil)])
def test_half_normal_has_the_smallest_error_of_a_fine_search(
    bits: int, fit: str, rounding: Callable[..., Array]
) -> None:
    grid = IntegerGrid(bits, "unsigned")
    found = float(RANGES.build("half_normal", fit=fit)(torch.ones(1, 1), grid)[0])
    np.testing.assert_allclose(found, best_for_normal(grid, rounding), rtol=2e-3)
    smallest = normal_error(found, grid, rounding)
    for factor in (0.5, 0.9, 0.98, 1.02, 1.1, 2.0):
        assert smallest < normal_error(found * factor, grid, rounding)


def test_he_uniform_takes_the_fan_in_it_is_told() -> None:
    rule = RANGES.build("he_uniform", fan_in=27)
    found = rule(torch.ones(2, 1000), IntegerGrid(2, "mid_rise"))
    np.testing.assert_allclose(found.numpy(), [2 * np.sqrt(6 / 27) / 3] * 2, rtol=1e-6)


def test_values_drawn_he_uniform_fill_the_grid_and_saturate_nowhere() -> None:
    grid, fan_in = IntegerGrid(4, "mid_rise"), 600
    bound = np.sqrt(6 / fan_in)
    rows = (torch.rand(20, fan_in, generator=torch.Generator().manual_seed(0)) * 2 - 1) * bound
    scale = RANGES.build("he_uniform")(rows, grid)
    assert ((rounded(rows, scale, grid) - rows).abs() <= scale.unsqueeze(1) * 0.5001).all()
    assert np.isclose(float(rounded(rows, scale, grid).max()), bound, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("mse", {"candidates": 1}, "candidates: 1 is less than 2"),
        ("mse", {"candidates": 1001}, "candidates: 1001 is more than 1000"),
        ("mse", {"candidates": 80.0}, "candidates: 80.0 is not a whole number"),
        ("ema_min_max", {"decay": 1.0}, "decay: 1.0 is not less than 1.0"),
        ("ema_min_max", {"decay": -0.1}, "decay: -0.1 is less than 0.0"),
        ("absmax", {"decay": 0.9}, "decay: absmax has no parameter decay; it takes none"),
        ("percentile", {"percentile": 50}, "percentile: 50 is not more than 50.0"),
        ("percentile", {"percentile": 100.1}, "percentile: 100.1 is more than 100.0"),
        ("ppq", {"iterations": 0}, "iterations: 0 is less than 1"),
        ("ppq", {"starts": 0}, "starts: 0 is less than 1"),
        ("half_normal", {"fit": "cail"}, "fit: unknown choice 'cail'; did you mean ceil?"),
        ("pact", {"l2": -1.0}, "l2: -1.0 is less than 0.0"),
        ("fixed", {}, "scale: missing; fixed needs it"),
        ("fixed", {"scale": 0.0}, "scale: 0.0 is not more than 0.0"),
        ("fixed", {"scale": float("inf")}, "scale: inf is not a finite number"),
        ("he_uniform", {"fan_in": 0}, "fan_in: 0 is less than 1"),
        ("he_uniform", {"fan_in": 2.5}, "fan_in: 2.5 is not a whole number"),
    ],
)
def test_parameters_out_of_range_are_refused(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        RANGES.build(name, **params)


WEIGHING = [name for name in RANGES.names() if RANGES.facts(name).weighs]


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("grid", [IntegerGrid(3, "full"), IntegerGrid(4, "unsigned"), ONE_BIT])
def test_a_value_that_stands_for_several_is_that_many_values(name: str, grid: IntegerGrid) -> None:
    rows = sample(grid, rows=3, columns=60)
    weights = torch.arange(60) % 4
    repeated = rows.repeat_interleave(weights, 1)
    found = build(name)(rows[:, weights > 0], grid, weights[weights > 0].float())
    expected = build(name)(repeated, grid)
    # between two neighbours, where a percentile lies, several equal values reach further
    tolerance = 0.02 if name == "percentile" else 1e-5
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=tolerance)


def test_a_percentile_of_values_that_stand_for_one_is_that_of_numpy() -> None:
    rows = torch.randn(4, 501, generator=torch.Generator().manual_seed(3))
    for share in (60.0, 99.0, 99.9, 100.0):
        rule = RANGES.build("percentile", percentile=share)
        found = rule(rows, IntegerGrid(4, "full"), torch.ones(501))
        expected = np.percentile(np.abs(rows.numpy()), share, axis=1) / 7
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in RANGES.names() if name not in BLIND])
@pytest.mark.parametrize("grid", [IntegerGrid(8, "narrow"), IntegerGrid(2, "full"), ONE_BIT])
def test_a_row_of_zeros_starts_as_weights_that_were_drawn(name: str, grid: IntegerGrid) -> None:
    rule, fan_in = build(name), 256
    drawn = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(2)) * 2 - 1
    expected = float(rule(drawn / 16, grid))
    np.testing.assert_allclose(start_of_zeros(rule, grid, fan_in), expected, rtol=0.02)
    if name == "learned":
        at = 2 * (0.5 / 256**0.5) / np.sqrt(np.ceil(high(grid)))
        np.testing.assert_allclose(start_of_zeros(rule, grid, fan_in), at, rtol=1e-5)

"""Where a learned scale may go: what is healthy stays, what leaves a row no levels does not."""

import numpy as np
import pytest
import torch

from qtool.numerics.grid import IntegerGrid, quantize
from qtool.numerics.ranges import learned, mse
from qtool.numerics.reach import reach, within

GRIDS = [IntegerGrid(b, "narrow") for b in (2, 3, 4, 5, 8)] + [
    IntegerGrid(8, "full"),
    IntegerGrid(2, "ternary"),
    IntegerGrid(1, "mid_rise"),
    IntegerGrid(4, "mid_rise"),
]
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def within_reach(scale: torch.Tensor, largest: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
    low, high = reach(grid)
    return within(scale, low * largest, high * largest)


def rows(kind: str, count: int = 40, size: int = 576) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(count, size, generator=generator).clamp(1e-6, 1 - 1e-6) * 2 - 1
    shapes = {
        "uniform": uniform,
        "normal": torch.erfinv(uniform),
        "laplace": -uniform.sign() * torch.log1p(-uniform.abs()),
    }
    return shapes[kind] * torch.logspace(-3, 2, count).unsqueeze(1)


@each_grid
@pytest.mark.parametrize("kind", ["uniform", "normal", "laplace"])
def test_healthy_scales_stay(kind: str, grid: IntegerGrid) -> None:
    w = rows(kind)
    largest = w.abs().amax(1)
    healthy = [mse(w, grid)] + [learned(w, grid)] * (grid.bits <= 4)
    for scale in healthy:
        assert torch.equal(within_reach(scale, largest, grid), scale)


@each_grid
@pytest.mark.parametrize("factor", [-1e3, 0.0, 1e-9, 1e-3, 1e3, 1e9])
def test_a_scale_that_ran_away_comes_back_to_where_the_row_has_levels(
    factor: float, grid: IntegerGrid
) -> None:
    w = rows("normal")
    largest = w.abs().amax(1)
    high = grid.qmax - grid.offset
    scale = within_reach(factor * largest / high, largest, grid)
    share = (scale * high / largest).numpy()
    assert (share > 0).all()
    codes = quantize(w, scale.unsqueeze(1), 0, grid) - grid.offset
    if factor > 1:
        assert (codes.abs().amax(1) >= high / 4 - grid.offset).all()
        assert share.max() < 4
    else:
        saturated = (codes.abs() == high).float().mean(1)
        assert (saturated < 1).all() or grid.bits == 1
        np.testing.assert_allclose(share, 0.26 * np.sqrt(high / 127), rtol=1e-5)


@each_grid
def test_rows_of_zeros_keep_their_scale_and_what_is_no_number_stays_visible(
    grid: IntegerGrid,
) -> None:
    scale = torch.tensor([0.5, 1e9, float("nan")])
    kept = within_reach(scale, torch.tensor([0.0, 0.0, 1.0]), grid)
    assert kept[:2].tolist() == [0.5, 1e9]
    assert kept[2].isnan()

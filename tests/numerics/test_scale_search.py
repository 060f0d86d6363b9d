"""Ranges without a look at a number on the way: what a device can compute and need not wait for."""

import pytest
import torch

from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.ranges import RANGES
from qtool.numerics.scale_search import alternated
from tests.kit import nothing_waits

NEEDED = {"fixed": {"scale": 0.1}}


@pytest.mark.parametrize("kind", ["narrow", "full", "mid_rise", "unsigned", "asymmetric"])
@pytest.mark.parametrize("name", RANGES.names())
def test_no_range_reads_a_number(name: str, kind: Kind) -> None:
    """A tensor on `meta` has no numbers: to read one, or count what is not 0, raises."""
    rule = RANGES.build(name, **NEEDED.get(name, {}))
    scale = rule(torch.empty(3, 200, device="meta"), IntegerGrid(4, kind))
    assert (scale.shape, scale.device.type) == ((3,), "meta")


@pytest.mark.parametrize("grid", [IntegerGrid(4, "narrow"), IntegerGrid(2, "mid_rise")], ids=str)
def test_the_search_comes_to_the_same_scales_whether_rows_that_stand_still_are_left_out(
    grid: IntegerGrid,
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(16, 333, generator=generator)
    rows[3] = 0.0  # never moves
    rows[5] = torch.randint(-1, 2, (333,), generator=generator).float()  # is there at once
    start = rows.abs().amax(1).clamp_min(1e-8) / grid.qmax
    for iterations in (1, 3, 50):
        found = [alternated(rows, start, grid, iterations, leaves_out=out) for out in (True, False)]
        assert torch.equal(*found)
    assert not torch.equal(found[0], start)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mse", "ppq"])
def test_a_gpu_finds_the_scales_of_a_cpu_without_waiting(name: str) -> None:
    rule, grid = RANGES.build(name), IntegerGrid(4, "narrow")
    rows = torch.randn(16, 333, generator=torch.Generator().manual_seed(0))
    there = rows.cuda()
    rule(there, grid)
    with torch.cuda.device(0), nothing_waits():
        found = rule(there, grid)
    torch.testing.assert_close(found.cpu(), rule(rows, grid), rtol=1e-5, atol=0)

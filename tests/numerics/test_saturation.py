"""What can saturate: against the kernels' arithmetic, written out product by product."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.saturation import (
    Neighbours,
    can_saturate,
    is_depthwise,
    largest_byte,
    widths_can_saturate,
    with_fewer_steps,
)

Ints = NDArray[np.int64]
GRIDS = [IntegerGrid(b, k) for k in ("narrow", "full") for b in range(2, 9)] + [
    IntegerGrid(b, "mid_rise") for b in range(1, 8)
]


def pairs_of(weight: Ints) -> Iterator[tuple[int, int]]:
    """Yield the weights of one channel [C, h, w] two by two, as kernels lay them out."""
    channels, height, width = weight.shape
    order = [
        int(weight[c, y, x]) for y in range(height) for x in range(width) for c in range(channels)
    ]
    order += [0] * (len(order) % 2)
    yield from zip(order[::2], order[1::2], strict=True)


def worst_pair_is_cut(first: int, second: int, largest: int) -> bool:
    """Try the ends of both inputs, as vpmaddubsw adds their products."""
    sums = [a * first + b * second for a in (0, largest) for b in (0, largest)]
    return any(s != min(max(s, -32768), 32767) for s in sums)


@pytest.mark.parametrize("shape", [(9, 3, 3, 3), (9, 4, 3, 3), (9, 5, 1, 1), (9, 1, 2, 2)])
@pytest.mark.parametrize("largest", [255, 200, 135, 15])
def test_a_channel_can_saturate_where_a_pair_of_its_products_can(
    shape: tuple[int, ...], largest: int
) -> None:
    rng = np.random.default_rng(int(np.prod(shape)) + largest)
    codes = rng.integers(-127, 128, shape)
    codes[: len(codes) // 2] //= 2
    found = can_saturate(torch.from_numpy(codes), largest)
    expected = [
        any(worst_pair_is_cut(a, b, largest) for a, b in pairs_of(channel)) for channel in codes
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (64, 4, 3, 3), (64, 5, 1, 1), (64, 7)])
@pytest.mark.parametrize("largest", [255, 200, 160])
def test_codes_that_are_parted_or_held_saturate_no_more_and_others_stay(
    shape: tuple[int, ...], largest: int
) -> None:
    codes = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(largest))
    neighbours, rows = Neighbours.of(shape, largest), codes.flatten(1)
    parted = neighbours.parted(rows)
    could = can_saturate(codes, largest)
    assert could.any()
    assert not can_saturate(parted.reshape(shape), largest).any()
    assert torch.equal(parted[~could], rows[~could])
    moved = parted != rows
    sums = parted + parted[:, neighbours.other]
    ends = torch.where(rows > 0, neighbours.highest, neighbours.lowest)
    assert torch.equal(sums[moved], ends[moved])  # no farther back than they must
    assert (rows - parted)[moved].abs().max() <= -(-(256 - neighbours.highest) // 2)
    held = rows.clone()
    for column, other in enumerate(neighbours.other.tolist()):
        if other != column:
            held[:, column] = neighbours.held(held[:, column], held[:, other])
    assert not can_saturate(held.reshape(shape), largest).any()
    assert torch.equal(held[~could], rows[~could])


def test_neighbours_are_channels_not_positions() -> None:
    codes = torch.zeros(2, 2, 1, 2, dtype=torch.int8)
    codes[0, :, 0, 0] = 100  # two channels at one position
    codes[1, 0, 0, :] = 100  # one channel at two positions, with a zero between them
    assert can_saturate(codes, 255).tolist() == [True, False]


def test_positions_are_neighbours_where_channels_are_odd() -> None:
    codes = torch.zeros(2, 3, 1, 2, dtype=torch.int8)
    codes[0, 2, 0, 0] = codes[0, 0, 0, 1] = 100  # the third and the fourth of six: a pair
    codes[1, 1, 0, 0] = codes[1, 2, 0, 0] = 100  # the second and the third: no pair
    assert can_saturate(codes, 255).tolist() == [True, False]


def test_a_linear_layer_pairs_its_inputs_in_order() -> None:
    codes = torch.tensor([[0, 100, 100, 0], [100, 100, 0, 0], [0, 0, -100, -100]])
    assert can_saturate(codes, 255).tolist() == [False, True, True]


def test_depthwise_layers_do_not_saturate_and_grouped_ones_may() -> None:
    codes = torch.full((8, 1, 3, 3), 127, dtype=torch.int8)
    assert not can_saturate(codes, 255, groups=8).any()
    assert can_saturate(codes, 255, groups=4).all()  # two channels out of each: no longer depthwise
    assert not is_depthwise((8, 1), 8)


@pytest.mark.parametrize("largest", [255, 191, 135, 129, 127, 15])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_widths_say_what_the_largest_codes_say(grid: IntegerGrid, largest: int) -> None:
    ends = [(grid.code_max, grid.code_max), (grid.code_min, grid.code_min)]
    expected = any(worst_pair_is_cut(a, b, largest) for a, b in ends)
    assert widths_can_saturate(grid, largest, [4, 2, 3, 3]) == expected
    assert not widths_can_saturate(grid, largest, [4, 1])  # nothing to add
    assert not widths_can_saturate(grid, largest, [4, 1, 3, 3], groups=4)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.code_max > 63], ids=str)
def test_one_bit_less_is_enough_on_every_grid(grid: IntegerGrid) -> None:
    fewer = with_fewer_steps(grid)
    assert not widths_can_saturate(fewer, 255, [4, 2])
    codes = torch.arange(fewer.code_min, fewer.code_max + 1, fewer.code_step)
    assert grid.contains(codes)  # what is stored keeps its width


def test_signed_inputs_travel_around_128() -> None:
    kinds = ("unsigned", "asymmetric", "full", "narrow")
    assert [largest_byte(IntegerGrid(8, kind)) for kind in kinds] == [255] * 4
    assert [largest_byte(IntegerGrid(4, kind)) for kind in kinds] == [15, 15, 135, 135]
    assert largest_byte(IntegerGrid(1, "mid_rise")) == 129

"""The integer grid: the contract's bounds by hand, and properties that hold for every value."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, Kind, dequantize, quantize, to_codes

KINDS: list[Kind] = ["narrow", "full", "mid_rise", "unsigned", "asymmetric"]
GRIDS = [
    IntegerGrid(bits, kind)
    for kind in KINDS
    for bits in range(1, 9)
    if (bits == 1) <= (kind == "mid_rise") and not (bits == 8 and kind == "mid_rise")
]
SIGNED = [grid for grid in GRIDS if grid.kind in ("narrow", "full", "mid_rise")]
BOUNDS_OF_4_BITS = {
    "narrow": (-7, 7),
    "full": (-8, 7),
    "mid_rise": (-7, 8),
    "unsigned": (0, 15),
    "asymmetric": (0, 15),
}

each_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
any_grid = st.sampled_from(GRIDS)
scales = st.floats(2.0**-14, 2.0**14, width=32).map(torch.tensor)
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30).map(torch.tensor)


def zero_points(grid: IntegerGrid) -> st.SearchStrategy[int]:
    return st.integers(grid.qmin, grid.qmax) if grid.kind == "asymmetric" else st.just(0)


def levels(grid: IntegerGrid) -> Tensor:
    return torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_have_the_bounds_that_one_counts_by_hand(kind: Kind) -> None:
    grid = IntegerGrid(4, kind)
    assert (grid.qmin, grid.qmax) == BOUNDS_OF_4_BITS[kind]


@each_grid
def test_bounds_are_those_of_the_contract(grid: IntegerGrid) -> None:
    b = grid.bits
    low, high = {
        "narrow": (-(2 ** (b - 1) - 1), 2 ** (b - 1) - 1),
        "full": (-(2 ** (b - 1)), 2 ** (b - 1) - 1),
        "mid_rise": (1 - 2 ** (b - 1), 2 ** (b - 1)),
        "unsigned": (0, 2**b - 1),
        "asymmetric": (0, 2**b - 1),
    }[grid.kind]
    assert (grid.qmin, grid.qmax) == (low, high)
    assert grid.offset == (0.5 if grid.kind == "mid_rise" else 0.0)
    assert grid.signed == (grid.kind not in ("unsigned", "asymmetric"))


@each_grid
def test_a_grid_has_two_to_the_bits_levels_and_narrow_one_less(grid: IntegerGrid) -> None:
    assert len(levels(grid)) == 2**grid.bits - (grid.kind == "narrow")


@each_grid
def test_symmetric_grids_mirror_their_levels_about_zero(grid: IntegerGrid) -> None:
    real = dequantize(levels(grid), torch.tensor(1.0), 0, grid)
    assert torch.equal(-real.flip(0), real) == (grid.kind in ("narrow", "mid_rise"))


def test_one_bit_is_minus_one_and_plus_one() -> None:
    grid = IntegerGrid(1, "mid_rise")
    codes, scale = to_codes(levels(grid), torch.tensor(3.0), grid)
    assert codes.tolist() == [-1, 1]
    assert scale == 1.5
    assert grid.finn_datatype == "BIPOLAR"


@each_grid
def test_codes_are_the_integers_and_on_mid_rise_the_odd_ones(grid: IntegerGrid) -> None:
    if grid.kind == "mid_rise":
        widest = 2**grid.bits - 1
        expected = list(range(-widest, widest + 1, 2))
    else:
        expected = list(range(grid.qmin, grid.qmax + 1))
    assert list(range(grid.code_min, grid.code_max + 1, grid.code_step)) == expected
    reach = range(-300, 301)
    accepted = [code for code in reach if grid.contains(torch.tensor([code]))]
    assert accepted == expected


@pytest.mark.parametrize("grid", SIGNED, ids=str)
def test_codes_of_signed_grids_fit_into_int8(grid: IntegerGrid) -> None:
    codes, _ = to_codes(levels(grid), torch.tensor(1.0), grid)
    assert codes.dtype == torch.int8
    assert codes.tolist() == list(range(grid.code_min, grid.code_max + 1, grid.code_step))
    assert grid.contains(codes)


def test_one_foreign_code_among_many_is_found() -> None:
    assert not IntegerGrid(2, "narrow").contains(torch.tensor([[1, 0], [-1, -2]]))
    assert not IntegerGrid(2, "mid_rise").contains(torch.tensor([[3, 1], [-1, 0]]))


@pytest.mark.parametrize(
    ("bits", "kind", "name"),
    [
        (4, "narrow", "INT4"),
        (8, "full", "INT8"),
        (2, "mid_rise", "INT3"),
        (7, "mid_rise", "INT8"),
        (3, "unsigned", "UINT3"),
        (8, "asymmetric", "UINT8"),
    ],
)
def test_finn_names_the_type_that_holds_the_codes(bits: int, kind: Kind, name: str) -> None:
    assert IntegerGrid(bits, kind).finn_datatype == name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_widths_outside_one_to_eight_are_refused(bits: int, kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"1\.\.8"):
        IntegerGrid(bits, kind)


@pytest.mark.parametrize(
    ("bits", "kind"),
    [(1, "narrow"), (1, "full"), (1, "asymmetric"), (8, "mid_rise")],
)
def test_grids_without_such_a_width_are_refused(bits: int, kind: Kind) -> None:
    with pytest.raises(ValueError, match="mid_rise"):
        IntegerGrid(bits, kind)


@each_grid
def test_a_bound_becomes_the_scale_that_puts_the_outermost_level_there(grid: IntegerGrid) -> None:
    bound = torch.tensor([0.3, 5.0])
    scale = grid.bound_to_scale(bound)
    if grid.kind == "mid_rise":
        np.testing.assert_allclose(scale, 2 * bound / (2**grid.bits - 1), rtol=1e-6)
    outermost = dequantize(torch.tensor(float(grid.qmax)), scale, 0, grid)
    np.testing.assert_allclose(outermost, bound, rtol=1e-6)


@given(st.data())
def test_quantize_always_lands_on_the_grid(data: st.DataObject) -> None:
    grid = data.draw(any_grid)
    q = quantize(data.draw(values), data.draw(scales), data.draw(zero_points(grid)), grid)
    assert torch.isin(q, levels(grid)).all()


@given(st.data())
def test_quantize_follows_the_formula_in_numpy(data: st.DataObject) -> None:
    grid, x, s = data.draw(any_grid), data.draw(values), data.draw(scales)
    z = data.draw(zero_points(grid))
    u = x.numpy() / s.numpy() + np.float32(grid.offset)
    expected = np.clip(np.rint(u) + np.float32(z), grid.qmin, grid.qmax)
    np.testing.assert_array_equal(quantize(x, s, z, grid).numpy(), expected)


@given(st.data())
def test_a_point_of_the_grid_survives_dequantize_and_quantize(data: st.DataObject) -> None:
    grid, scale = data.draw(any_grid), data.draw(scales)
    z = data.draw(zero_points(grid))
    x_hat = dequantize(levels(grid), scale, z, grid)
    assert torch.equal(quantize(x_hat, scale, z, grid), levels(grid))
    assert torch.equal(dequantize(quantize(x_hat, scale, z, grid), scale, z, grid), x_hat)


@given(st.data())
def test_inside_the_grid_rounding_moves_a_value_by_half_a_step_at_most(data: st.DataObject) -> None:
    grid, scale = data.draw(any_grid), data.draw(scales)
    real = dequantize(levels(grid), scale, 0, grid)
    share = data.draw(st.floats(0, 1))
    x = real[0] + share * (real[-1] - real[0])
    x_hat = dequantize(quantize(x, scale, 0, grid), scale, 0, grid)
    assert abs(x_hat - x) <= scale * (0.5 + 1e-4)


def test_ties_go_to_the_even_integer() -> None:
    ties = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    q = quantize(ties, torch.tensor(1.0), 0, IntegerGrid(4, "full"))
    assert q.tolist() == [-2, -2, 0, 0, 2, 2]


def test_thresholds_of_mid_rise_lie_at_whole_steps_and_zero_goes_to_minus_one_half() -> None:
    grid, one = IntegerGrid(2, "mid_rise"), torch.tensor(1.0)
    x = torch.tensor([-9.0, -1.0, -0.9, -0.1, 0.0, 0.1, 0.9, 1.0, 9.0])
    x_hat = dequantize(quantize(x, one, 0, grid), one, 0, grid)
    # the ties -1, 0 and 1 are -1/2, 1/2 and 3/2 in steps: the even integers are 0, 0 and 2
    assert x_hat.tolist() == [-1.5, -0.5, -0.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5]


def test_rounding_comes_before_an_odd_zero_point_is_added() -> None:
    q = quantize(torch.tensor([0.5, 1.5]), torch.tensor(1.0), 1, IntegerGrid(4, "asymmetric"))
    assert q.tolist() == [1, 3]  # round(u + z) would be 2 and 2


def test_an_asymmetric_grid_represents_zero_exactly() -> None:
    grid, scale = IntegerGrid(4, "asymmetric"), torch.tensor(0.3)
    for z in range(16):
        assert dequantize(quantize(torch.tensor(0.0), scale, z, grid), scale, z, grid) == 0


def test_scales_per_channel_broadcast() -> None:
    grid = IntegerGrid(4, "narrow")
    scale = torch.tensor([[1.0], [0.5]])
    assert quantize(torch.tensor([[2.0], [2.0]]), scale, 0, grid).tolist() == [[2], [4]]


@given(st.sampled_from(SIGNED), scales, values)
def test_code_times_code_scale_is_the_dequantized_value_bit_for_bit(
    grid: IntegerGrid, scale: Tensor, x: Tensor
) -> None:
    q = quantize(x, scale, 0, grid)
    codes, code_scale = to_codes(q, scale, grid)
    assert grid.contains(codes)
    assert torch.equal(codes.float() * code_scale, dequantize(q, scale, 0, grid))

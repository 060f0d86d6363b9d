"""A tensor on its grid says in codes what quantizing and dequantizing say in steps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, Kind, dequantize, quantize, to_codes
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS, deployed

KINDS: list[Kind] = ["narrow", "full", "mid_rise", "unsigned", "asymmetric"]
GRIDS = [
    IntegerGrid(bits, kind)
    for kind in KINDS
    for bits in range(1, 9)
    if (bits > 1 or kind in ("mid_rise", "unsigned")) and not (bits == 8 and kind == "mid_rise")
]
EXACT = [name for name in ROUNDINGS.names() if deployed(name) == name]
steps = st.floats(2.0**-14, 2.0**14, width=32).map(torch.tensor)
reals = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30).map(torch.tensor)


@st.composite
def tensors_on_grids(draw: st.DrawFn) -> tuple[OnGrid, Tensor, int]:
    """Return a tensor's grid and scale, and the step and zero point that it was made of."""
    grid, step = draw(st.sampled_from(GRIDS)), draw(steps)
    zero = draw(st.integers(grid.qmin, grid.qmax)) if grid.kind == "asymmetric" else 0
    rounding = ROUNDINGS[draw(st.sampled_from(EXACT))]
    return OnGrid.by_step(grid, step, torch.tensor(zero), rounding), step, zero


def members(grid: IntegerGrid) -> Tensor:
    return torch.arange(grid.code_min, grid.code_max + 1, grid.code_step).float()


@given(tensors_on_grids(), reals)
def test_values_of_codes_are_what_dequantize_makes_of_quantize(
    made: tuple[OnGrid, Tensor, int], x: Tensor
) -> None:
    tensor, step, zero = made
    q = quantize(x, step, zero, tensor.grid, tensor.rounding)
    assert torch.equal(tensor.values(tensor.codes(x)), dequantize(q, step, zero, tensor.grid))


@given(tensors_on_grids(), reals)
def test_codes_are_members_of_the_grid_and_the_ones_that_are_stored(
    made: tuple[OnGrid, Tensor, int], x: Tensor
) -> None:
    tensor, step, _ = made
    codes = tensor.codes(x)
    assert set(codes.tolist()) <= set(members(tensor.grid).tolist())
    if tensor.grid.signed:
        stored, scale = to_codes(
            quantize(x, step, 0, tensor.grid, tensor.rounding), step, tensor.grid
        )
        assert torch.equal(codes, stored.float())
        assert torch.equal(tensor.scale, scale)


@given(tensors_on_grids())
def test_codes_of_values_are_the_codes(made: tuple[OnGrid, Tensor, int]) -> None:
    # a value may lie next to its level by the last bit, which ceil turns into the next code
    tensor = OnGrid(made[0].grid, made[0].scale, made[0].zero_point)
    codes = members(tensor.grid)
    assert torch.equal(tensor.codes(tensor.values(codes)), codes)


@given(tensors_on_grids())
def test_neighbouring_codes_are_one_step_apart(made: tuple[OnGrid, Tensor, int]) -> None:
    tensor, step, _ = made
    assert torch.equal(tensor.step, step)
    values = tensor.values(members(tensor.grid)).double().numpy()
    np.testing.assert_allclose(np.diff(values), float(step), rtol=1e-4)


@given(tensors_on_grids())
def test_the_reach_is_that_of_the_code_farthest_from_zero(
    made: tuple[OnGrid, Tensor, int],
) -> None:
    tensor, _, zero = made
    assert tensor.reach == max(abs(code - zero) for code in members(tensor.grid).tolist())


@pytest.mark.parametrize("zero", [torch.tensor(3, dtype=torch.int32), torch.tensor(3.0)])
def test_the_zero_point_may_be_any_kind_of_number(zero: Tensor) -> None:
    tensor = OnGrid(IntegerGrid(4, "asymmetric"), torch.tensor(0.5), zero)
    assert tensor.codes(torch.tensor([0.0, 1.0, -9.0])).tolist() == [3, 5, 0]
    assert tensor.values(torch.tensor([3.0, 5.0, 0.0])).tolist() == [0.0, 1.0, -1.5]
    assert tensor.reach == 12


def test_a_scale_for_each_channel_broadcasts() -> None:
    scale = torch.tensor([[1.0], [0.5]])
    tensor = OnGrid.by_step(IntegerGrid(4, "narrow"), scale)
    assert tensor.codes(torch.tensor([[2.0], [2.0]])).tolist() == [[2], [4]]
    assert tensor.values(torch.tensor([[2.0], [4.0]])).tolist() == [[2.0], [2.0]]


def test_one_bit_holds_odd_codes_of_half_a_step() -> None:
    tensor = OnGrid.by_step(IntegerGrid(1, "mid_rise"), torch.tensor(3.0))
    assert (tensor.scale, tensor.step, tensor.reach) == (1.5, 3.0, 1)
    codes = tensor.codes(torch.tensor([-0.1, 0.1]))
    assert codes.tolist() == [-1, 1]
    assert tensor.values(codes).tolist() == [-1.5, 1.5]

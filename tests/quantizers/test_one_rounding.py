"""Every way to round gives the same integers, bit for bit, on every grid and at every tie."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, dequantize, quantize, round_to_steps
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS
from qtool.quantizers import kernels
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.oscillation import OscillationTracker
from qtool.settings.tensors import ActivationQuantization
from tests.numerics.test_on_grid import GRIDS

NO_COMPILER = shutil.which("g++") is None and shutil.which("clang++") is None
SCALES = [2.0**-3, 1.0 / 3.0]


def values(grid: IntegerGrid, scale: float, zero: int) -> Tensor:
    """Return every threshold, its two neighbours in float32, and values beyond the grid."""
    ties = torch.arange(grid.qmin - zero - 3, grid.qmax - zero + 3.25, 0.5)
    x = (ties - grid.offset) * torch.tensor(scale)
    infinity = torch.tensor(torch.inf)
    return torch.cat([x, torch.nextafter(x, infinity), torch.nextafter(x, -infinity)])


def by_numpy(x: Tensor, scale: float, grid: IntegerGrid, zero: int, name: str) -> Any:
    """Return the integers, each operation rounded to float32 as IEEE 754 has it."""
    u = x.numpy() / np.float32(scale) + np.float32(grid.offset)
    rounded = np.ceil(u) if name == "ceil" else np.rint(u)
    return np.clip(rounded, grid.qmin - zero, grid.qmax - zero) + zero


def quantizer(grid: IntegerGrid, scale: float, zero: int, rounding: str) -> FakeQuantize:
    section = {"bits": grid.bits, "grid": "full" if grid.bits > 1 else "unsigned"}
    made = FakeQuantize(ActivationQuantization.model_validate(section), grid)
    made.scale.data = torch.tensor(scale)
    made.zero_point.fill_(zero)
    made.rounding, made.deployed_rounding = ROUNDINGS[rounding], rounding
    return made


@pytest.mark.parametrize("rounding", ["half_to_even", "ceil"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_all_ways_agree_bit_for_bit(grid: IntegerGrid, rounding: str) -> None:
    for scale in SCALES:
        zero = grid.qmax // 3 if grid.kind == "asymmetric" else 0
        x, step, rule = values(grid, scale, zero), torch.tensor(scale), ROUNDINGS[rounding]
        q = torch.tensor(by_numpy(x, scale, grid, zero, rounding))
        low, high = grid.qmin - zero, grid.qmax - zero
        assert torch.equal(round_to_steps(x, step, low, high, grid.offset, rule), q - zero)
        assert torch.equal(quantize(x, step, zero, grid, rule), q)
        assert torch.equal(quantize(x, step, torch.tensor(float(zero)), grid, rule), q)
        x_hat = dequantize(q, step, zero, grid)
        on_grid = OnGrid.by_step(grid, step, zero, rule)
        assert torch.equal(on_grid.codes(x), 2 * q - 1 if grid.kind == "mid_rise" else q)
        made = quantizer(grid, scale, zero, rounding)
        for training in (True, False):
            assert torch.equal(made.train(training).round_to_grid(x), x_hat)
        assert torch.equal(made.on_grid.codes(x), on_grid.codes(x))
        assert torch.equal(made.on_grid.values(made.on_grid.codes(x)), x_hat)
        if rounding == "half_to_even" and not zero:
            watched = OscillationTracker(x, momentum=0.1)
            assert torch.equal(watched.codes_of(x, step, grid), q)


@pytest.mark.skipif(NO_COMPILER, reason="kernels need a C++ compiler")
@pytest.mark.parametrize("rounding", ["half_to_even", "ceil"])
@pytest.mark.parametrize("kind", ["narrow", "mid_rise", "unsigned"])
def test_compiled_kernels_round_as_all_do(kind: Any, rounding: str) -> None:
    grid = IntegerGrid(3, kind)
    for scale in SCALES:
        x = values(grid, scale, 0)
        q = torch.tensor(by_numpy(x, scale, grid, 0, rounding))
        found = kernels.forward(
            x,
            torch.tensor(scale),
            float(grid.qmin),
            float(grid.qmax),
            offset=grid.offset,
            rounding=ROUNDINGS[rounding],
        )
        assert torch.equal(found, dequantize(q, torch.tensor(scale), 0, grid))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_values_get_the_codes_of_float32(dtype: torch.dtype) -> None:
    grid, scale = IntegerGrid(8, "full"), torch.tensor(1 / 100.4)
    x = torch.linspace(-1.5, 1.5, 501).to(dtype)
    found = quantize(x, scale, 0, grid)
    assert found.dtype == dtype
    assert torch.equal(found.float(), quantize(x.float(), scale, 0, grid))

"""Coordinate descent against NumPy, one row and one coordinate at a time."""

import numpy as np
import pytest
import torch

from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.on_grid import OnGrid
from qtool.post_training.coordinates import AIM_DAMPING, DAMPING, SWEEPS, aimed, descended
from qtool.post_training.gptq import hessian
from tests.post_training.test_gptq import problem


def reference(
    row: np.ndarray, codes: np.ndarray, scale: float, h: np.ndarray, grid: IntegerGrid
) -> tuple[np.ndarray, float]:
    """Return codes and scale of one row after alternating between both, by the formulas."""
    h = h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h))
    codes, two = codes.astype(float).copy(), 2 if grid.kind == "mid_rise" else 1
    for _ in range(SWEEPS):
        scale = float(row @ h @ codes / (codes @ h @ codes))
        for i in range(len(row)):
            others = sum(h[i, j] * (row[j] - scale * codes[j]) for j in range(len(row)) if j != i)
            wish = (row[i] + others / h[i, i]) / scale
            if two == 2:
                codes[i] = 2 * np.clip(np.round(wish / 2 + 0.5), grid.qmin, grid.qmax) - 1
            else:
                codes[i] = np.clip(np.round(wish), grid.qmin, grid.qmax)
    return codes, scale


def error(rows: torch.Tensor, values: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Return e' H e of each row, damped as the descent has it."""
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    wrong = (rows - values).double()
    return ((wrong @ h) * wrong).sum(1)


@pytest.mark.parametrize("kind", ["full", "narrow", "mid_rise"])
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_and_scales_are_those_of_the_formulas(kind: Kind, bits: int) -> None:
    rows, inputs = problem(5, 12)
    h, grid = hessian(inputs), IntegerGrid(bits, kind)
    begun = OnGrid.by_step(grid, torch.full((5, 1), 0.7))
    first = begun.codes(rows)
    codes, scale = descended(rows, begun, first, h, scales=True)
    for row in range(5):
        expected = reference(rows[row].double().numpy(), first[row].numpy(),
                             float(begun.scale[row]), h[0].numpy(), grid)  # fmt: skip
        assert codes[row].tolist() == expected[0].tolist()
        assert float(scale[row]) == pytest.approx(expected[1], rel=1e-6)
    assert scale.shape == begun.scale.shape
    before = error(rows, begun.values(first), h[0])
    assert (error(rows, codes * scale, h[0]) < before).all()


def test_no_single_code_could_be_better_and_scales_that_are_given_stay() -> None:
    rows, inputs = problem(6, 8)
    h, on_grid = hessian(inputs), OnGrid.by_step(IntegerGrid(2, "full"), torch.full((6, 1), 0.6))
    codes, scale = descended(rows, on_grid, on_grid.codes(rows), h, scales=False)
    assert torch.equal(scale, on_grid.scale)
    least = error(rows, codes * scale, h[0])
    for column in range(8):
        for code in range(-2, 2):
            other = codes.clone()
            other[:, column] = code
            assert (error(rows, other * scale, h[0]) >= least - 1e-6).all()


def test_groups_are_apart_and_a_tensor_s_scale_is_one() -> None:
    both = [problem(3, 6, seed) for seed in (1, 2)]
    grid, rows = IntegerGrid(3, "full"), torch.cat([one for one, _ in both])
    h = hessian(torch.cat([inputs for _, inputs in both], dim=1))
    per_row = OnGrid.by_step(grid, torch.full((6, 1), 0.5))
    codes, scale = descended(rows, per_row, per_row.codes(rows), h, scales=True)
    for place, (own, inputs) in enumerate(both):
        alone = OnGrid.by_step(grid, torch.full((3, 1), 0.5))
        c, s = descended(own, alone, alone.codes(own), hessian(inputs), scales=True)
        part = slice(3 * place, 3 * place + 3)
        assert torch.equal(codes[part], c)
        assert torch.allclose(scale[part], s, rtol=1e-6)
    one = OnGrid.by_step(grid, torch.tensor(0.5))
    codes, scale = descended(rows, one, one.codes(rows), h, scales=True)
    assert scale.shape == ()
    assert scale != 0.5


def test_a_weight_is_aimed_at_what_the_float_network_gives() -> None:
    rows, inputs = problem(4, 6)
    noisy = inputs + 0.3 * torch.randn(
        inputs.shape, generator=torch.Generator().manual_seed(5)
    ) @ torch.randn(6, 6, generator=torch.Generator().manual_seed(6))
    wanted = inputs[:, 0] @ rows.T + 3.0  # a shift is no business of the weight's
    found = aimed(rows, noisy, wanted)
    x, w, y = (t.double().numpy() for t in (noisy[:, 0], rows, wanted))
    left = y - x @ w.T
    left -= left.mean(0)
    h = x.T @ x
    h += AIM_DAMPING * np.mean(np.diag(h)) * np.eye(6)
    assert np.allclose(found.numpy(), w + left.T @ x @ np.linalg.inv(h), atol=1e-5)
    after, before = ((wanted - noisy[:, 0] @ v.T).var(0).sum() for v in (found, rows))
    assert after < before


def test_a_weight_stays_where_positions_are_too_few_to_tell() -> None:
    rows, inputs = problem(4, 40)
    few = inputs[:12]
    noise = torch.randn(12, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(aimed(rows, few, few[:, 0] @ rows.T + noise), rows)


def test_a_weight_stays_where_inputs_are_all_zero() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(10, 1, 5)
    assert torch.equal(aimed(rows, nothing, torch.zeros(10, 3)), rows)

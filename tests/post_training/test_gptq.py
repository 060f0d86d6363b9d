"""GPTQ against a reference in NumPy that rounds column by column, and against all there is."""

import itertools

import numpy as np
import pytest
import torch

from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.on_grid import OnGrid
from qtool.post_training.gptq import (
    compensated_codes,
    hessian,
    inverse_factor,
    rounded_in_order,
)


def reference(
    rows: np.ndarray, h: np.ndarray, scale: np.ndarray, grid: IntegerGrid, damping: float
) -> np.ndarray:
    """Round one column after another by the formula of optimal brain surgeons, one row at a time.

    Each step inverts the Hessian of the columns that are left anew, which takes no Cholesky factor
    (Frantar et al., 2022, equation 2). A row that ends worse than rounded to nearest is that.
    """
    plain = h
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    order = np.argsort(-np.diag(h), kind="stable")
    codes = np.zeros_like(rows)

    def integers(w: np.ndarray, scale: float) -> np.ndarray:
        return np.clip(np.round(w / scale + grid.offset), grid.qmin, grid.qmax)

    for row in range(len(rows)):
        w, left, q = rows[row].copy(), list(order), np.zeros(len(h))
        while left:
            inverse = np.linalg.inv(h[np.ix_(left, left)])
            i = left[0]
            q[i] = integers(w[i], scale[row])
            w[left] -= (w[i] - (q[i] - grid.offset) * scale[row]) / inverse[0, 0] * inverse[0]
            left = left[1:]
        found = []
        for tried in (q, integers(rows[row], scale[row])):
            wrong = (tried - grid.offset) * scale[row] - rows[row]
            found.append((wrong @ plain @ wrong, tuple(tried)))
        q = np.array(found[0][1] if found[0][0] <= found[1][0] else found[1][1])
        codes[row] = 2 * q - 1 if grid.kind == "mid_rise" else q
    return codes


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [C, K] and inputs [P, 1, K] that are correlated, as those of layers are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(300, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs.unsqueeze(1)


@pytest.mark.parametrize(
    ("bits", "kind"),
    [(1, "mid_rise"), (2, "ternary"), (2, "narrow"), (3, "full"), (4, "mid_rise"), (8, "narrow")],
)
def test_codes_are_those_of_the_formula_one_column_at_a_time(bits: int, kind: Kind) -> None:
    rows, inputs = problem(5, 9)
    grid = IntegerGrid(bits, kind)
    scale = grid.bound_to_scale(rows.abs().amax(1, keepdim=True) * 0.8)
    h = hessian(inputs)
    given = compensated_codes(rows, OnGrid.by_step(grid, scale), h)
    expected = reference(rows.double().numpy(), h[0].numpy(), scale[:, 0].numpy(), grid, 0.01)
    assert given is not None
    np.testing.assert_array_equal(given.numpy(), expected)


def test_blocks_of_columns_change_nothing() -> None:
    rows, inputs = problem(3, 300)
    on_grid = OnGrid.by_step(IntegerGrid(3, "narrow"), torch.tensor(0.5))
    factor = inverse_factor(hessian(inputs)[0])
    assert factor is not None
    at_once = rounded_in_order(rows, on_grid, factor, block=300)
    assert torch.equal(rounded_in_order(rows, on_grid, factor, block=7), at_once)


@pytest.mark.parametrize("seed", range(6))
def test_it_lies_between_nearest_and_the_best_that_there_is(seed: int) -> None:
    rows, inputs = problem(1, 6, seed)
    grid = IntegerGrid(2, "narrow")
    on_grid = OnGrid.by_step(grid, rows.abs().amax() * 0.7)
    x = inputs[:, 0].double()

    def error(codes: torch.Tensor) -> float:
        return float((x @ (on_grid.values(codes) - rows).double().T).square().mean())

    every = itertools.product(range(grid.qmin, grid.qmax + 1), repeat=6)
    best = min(error(torch.tensor([codes], dtype=torch.float32)) for codes in every)
    given = compensated_codes(rows, on_grid, hessian(inputs), damping=1e-6)
    assert given is not None
    assert best <= error(given) + 1e-9
    assert error(given) <= error(on_grid.codes(rows)) + 1e-9


def test_groups_have_hessians_of_their_own() -> None:
    rows, inputs = problem(4, 6)
    _, others = problem(4, 6, 1)
    on_grid = OnGrid.by_step(IntegerGrid(3, "narrow"), torch.full((4, 1), 0.6))
    both = compensated_codes(rows, on_grid, hessian(torch.cat([inputs, others], 1)))
    scale = OnGrid.by_step(on_grid.grid, torch.tensor(0.6))
    alone = [
        compensated_codes(part, scale, hessian(x))
        for part, x in ((rows[:2], inputs), (rows[2:], others))
    ]
    assert both is not None
    assert torch.equal(both, torch.cat([a for a in alone if a is not None]))


@pytest.mark.parametrize("inputs", [torch.zeros(9, 1, 3), torch.full((9, 1, 3), torch.nan)])
def test_inputs_that_tell_nothing_have_no_codes(inputs: torch.Tensor) -> None:
    on_grid = OnGrid.by_step(IntegerGrid(3, "narrow"), torch.tensor(0.5))
    assert compensated_codes(torch.randn(2, 3), on_grid, hessian(inputs)) is None


def test_a_constant_input_is_no_obstacle() -> None:
    on_grid = OnGrid.by_step(IntegerGrid(4, "narrow"), torch.tensor(0.2))
    rows = torch.tensor([[0.11, 0.11, 0.11, 0.11]])
    codes = compensated_codes(rows, on_grid, hessian(torch.ones(9, 1, 4)))
    assert codes is not None
    assert float(on_grid.values(codes).sum()) == pytest.approx(0.4)  # nearest: 0.8 for 0.44

"""Learned rounding: its formulas against NumPy, and what it is for."""

import numpy as np
import pytest
import torch

from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.on_grid import OnGrid
from qtool.post_training.adaround import Learning, learned_codes
from qtool.post_training.following import Following
from qtool.post_training.patches import gradient_of_rows, product
from qtool.post_training.seen import Patches
from qtool.post_training.soft_rounding import (
    SoftRows,
    beta_at,
    rectified_sigmoid,
    regularizer,
    start_of,
)


def h_of(v: np.ndarray) -> np.ndarray:
    return np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)


def learned(
    rows: torch.Tensor,
    on_grid: OnGrid,
    seen: Patches,
    follows: Following,
    how: Learning,
    *,
    seed: int = 0,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return learned_codes(rows, on_grid, seen, follows, how=how, generator=generator)


def test_h_and_the_regularizer_are_those_of_the_paper() -> None:
    v = np.linspace(-6, 6, 41)
    h = rectified_sigmoid(torch.from_numpy(v))
    np.testing.assert_allclose(h.numpy(), h_of(v), rtol=0, atol=1e-12)
    for beta in (20.0, 5.5, 2.0):
        expected = np.sum(1 - np.abs(2 * h_of(v) - 1) ** beta)
        assert float(regularizer(h, beta)) == pytest.approx(expected, rel=1e-12)


def test_at_first_nothing_is_rounded() -> None:
    rows = torch.linspace(-1, 1, 24).reshape(2, 12)
    for kind in ("narrow", "full", "mid_rise"):
        grid = IntegerGrid(4, kind)
        soft = SoftRows.of(rows, OnGrid.by_step(grid, torch.full((2, 1), 0.3)))
        torch.testing.assert_close(soft.rows(soft.h()), rows, rtol=0, atol=1e-6)
    assert torch.equal(rectified_sigmoid(start_of(torch.zeros(1))), torch.zeros(1))


def test_beta_falls_once_the_regularizer_begins() -> None:
    betas = [beta_at(step / 10) for step in range(11)]
    assert betas[:2] == [None, None]
    assert betas[2:] == pytest.approx([20 - 18 * (i / 8) for i in range(9)])


@pytest.mark.parametrize("kind", ["narrow", "mid_rise"])
@pytest.mark.parametrize("beta", [None, 7.0])
def test_the_gradient_is_that_of_the_loss_by_differences(kind: Kind, beta: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = IntegerGrid(3, kind)
    rows = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    scale = torch.rand(4, 1, generator=generator, dtype=torch.float64) * 0.3 + 0.1
    soft = SoftRows.of(rows, OnGrid.by_step(grid, scale))
    x = torch.randn(7, 1, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    gain = torch.randn(4, generator=generator, dtype=torch.float64)
    follows = Following(gain, torch.ones_like(gain), 0.0, 3.0)
    v = soft.v.detach().numpy().copy()

    def loss(v: np.ndarray) -> float:  # in NumPy alone
        h = h_of(v)
        q = np.clip(soft.down.numpy() + h, grid.qmin, grid.qmax)
        y = x[:, 0].numpy() @ ((q - grid.offset) * scale.numpy()).T
        made = np.clip(y * gain.numpy() + 1, 0, 3)
        wrong = ((made - target.numpy()) ** 2).sum()
        return wrong + (0 if beta is None else 0.02 * np.sum(1 - np.abs(2 * h - 1) ** beta))

    expected = np.zeros_like(v)
    for place in np.ndindex(*v.shape):
        ends = []
        for sign in (1, -1):
            moved = v.copy()
            moved[place] += sign * 1e-6
            ends.append(loss(moved))
        expected[place] = (ends[0] - ends[1]) / 2e-6
    h = rectified_sigmoid(soft.v.detach())
    made = follows(product(x, soft.rows(h)))
    grad = gradient_of_rows(follows.gradient(2 * (made - target), made), x, rows.shape)
    given = soft.gradient(grad, h, weight=0.02, beta=beta)
    np.testing.assert_allclose(given.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected).max() > 0.1


def test_two_errors_that_add_up_are_made_to_cancel() -> None:
    # both inputs are equal, and both weights lie a little below the middle between two levels:
    # nearest rounds both down, and is off by 0.89 of a step; one up and one down is off by 0.11
    x = torch.randn(400, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 2)
    rows, on_grid = (
        torch.tensor([[0.42, 0.47]]),
        OnGrid.by_step(IntegerGrid(4, "narrow"), torch.tensor(1.0)),
    )
    seen = Patches(x.contiguous(), product(x, rows), torch.zeros(1))
    follows = Following(torch.ones(1), torch.zeros(1))
    how = Learning(iterations=300, places=64, rate=0.05)
    codes = learned(rows, on_grid, seen, follows, how)
    assert sorted(codes.flatten().tolist()) == [0.0, 1.0]
    error, of_nearest = (
        seen.error(seen.made_by(on_grid.values(made))) for made in (codes, on_grid.codes(rows))
    )
    assert error < 0.02 < of_nearest


def test_what_a_relu_cuts_off_costs_nothing() -> None:
    x = torch.rand(400, 1, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[-0.55, -0.55], [0.42, 0.47]])
    on_grid = OnGrid.by_step(IntegerGrid(4, "narrow"), torch.tensor(1.0))
    seen = Patches(x, product(x, rows), torch.zeros(2))
    follows = Following(torch.ones(2), torch.zeros(2), 0.0)
    soft = SoftRows.of(rows, on_grid)
    h = soft.h()
    made = follows(product(x, soft.rows(h)))
    grad = follows.gradient(made - 1, made)
    assert torch.equal(grad[:, 0], torch.zeros(400))
    assert bool((grad[:, 1] != 0).all())
    codes = learned(rows, on_grid, seen, follows, Learning(400, rate=0.05))
    assert sorted(codes[1].tolist()) == [0.0, 1.0]


def test_one_seed_gives_one_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, x = torch.randn(3, 8, generator=generator), torch.randn(90, 1, 8, generator=generator)
    seen = Patches(x, product(x, rows), torch.zeros(3))
    on_grid = OnGrid.by_step(IntegerGrid(2, "narrow"), torch.tensor(0.7))
    follows = Following(torch.ones(3), torch.zeros(3))

    def codes(seed: int) -> torch.Tensor:
        how = Learning(iterations=60, places=16, rate=0.05)
        return learned(rows, on_grid, seen, follows, how, seed=seed)

    assert torch.equal(codes(5), codes(5))


def test_how_a_weight_lies_in_memory_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, 3, 3, generator=generator)
    x = torch.randn(90, 1, 36, generator=generator)
    seen = Patches(x, product(x, rows), torch.zeros(3))
    on_grid = OnGrid.by_step(IntegerGrid(3, "narrow"), torch.tensor(0.5))
    follows, how = Following(torch.ones(3), torch.zeros(3)), Learning(100, places=32, rate=0.05)
    expected = learned(rows, on_grid, seen, follows, how)
    otherwise = rows.contiguous(memory_format=torch.channels_last)
    assert torch.equal(learned(otherwise, on_grid, seen, follows, how), expected)
    errors = [seen.error(seen.made_by(on_grid.values(c))) for c in (expected, on_grid.codes(rows))]
    assert errors[0] < 0.8 * errors[1]

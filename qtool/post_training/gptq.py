"""GPTQ: rounding one column of a weight after another, the error of each made up for by the rest.

For a row w and inputs x with the Hessian H = mean x x', the best change of the columns that are not
rounded yet, once column i was rounded to q_i, is

    w_j -= (w_i - q_i) / U_ii * U_ij,   j > i,   U upper, U' U = (H + damping I)^-1.

Reference: Frantar et al., 2022, arXiv:2210.17323.
"""

import torch
from torch import Tensor

from qtool.numerics.on_grid import OnGrid

DAMPING = 0.01  # of the mean of H's diagonal, as the paper has it
BLOCK = 128  # columns whose changes reach the rest of the weight at once


def hessian(inputs: Tensor) -> Tensor:
    """Return mean x x' of patches [P, groups, K], float64 [groups, K, K]."""
    groups = inputs.shape[1]
    made = [inputs[:, group].T @ inputs[:, group] for group in range(groups)]
    return torch.stack(made).double().div_(len(inputs))


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor | None:
    """Return U with U' U = (H + damping mean(diag H) I)^-1, upper, [K, K]; None where none is.

    Columns that are never anything but zero are taken as if they had the mean diagonal: whatever
    they are rounded to, the output is the same.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    if not bool(torch.isfinite(mean)) or mean <= 0:
        return None
    damped = hessian.clone()
    damped.diagonal().copy_(torch.where(diagonal == 0, mean, diagonal) + damping * mean)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if failed else upper


def rounded_in_order(
    rows: Tensor, on_grid: OnGrid, factor: Tensor, *, block: int = BLOCK
) -> Tensor:
    """Return codes of rows, each column made up for by those behind it; shaped as rows, [C, K].

    Args:
        rows: float [C, K].
        on_grid: their grid, its scale [] or [C, 1].
        factor: U of `inverse_factor`, [K, K].
        block: columns at a time.
    """
    left = rows.to(factor.dtype).clone()
    codes = torch.empty_like(rows)
    count = rows.shape[1]
    for first in range(0, count, block):
        last = min(first + block, count)
        errors = left.new_empty(len(rows), last - first)
        for column in range(first, last):
            now = left[:, column : column + 1]
            codes[:, column : column + 1] = on_grid.codes(now.to(rows.dtype))
            level = on_grid.values(codes[:, column : column + 1]).to(now.dtype)
            error = (now - level) / factor[column, column]
            left[:, column:last] -= error * factor[column, column:last]
            errors[:, column - first] = error[:, 0]
        left[:, last:] -= errors @ factor[first:last, last:]
    return codes


def compensated_codes(
    rows: Tensor,
    on_grid: OnGrid,
    hessian: Tensor,
    *,
    damping: float = DAMPING,
    by_diagonal: bool = True,
) -> Tensor | None:
    """Return codes of a weight whose errors make up for each other, shaped as its rows.

    A row for which that ends worse than rounding to nearest, as near the ends of a small grid, is
    rounded to nearest.

    Args:
        rows: float32 [C, in / groups, ...].
        on_grid: their grid, its scale [] or [C, 1, ...].
        hessian: float64 [groups, K, K] of the inputs.
        damping: added to the diagonal, as a share of its mean.
        by_diagonal: round the columns with the largest inputs first.

    Returns:
        The codes; None where a Hessian cannot be inverted.
    """
    groups, count = hessian.shape[:2]
    flat = rows.reshape(groups, -1, count)
    scale = on_grid.scale.reshape(-1).expand(len(rows)).reshape(groups, -1, 1)
    codes = torch.empty_like(flat)
    for group in range(groups):
        own = hessian[group]
        order = own.diagonal().argsort(descending=True, stable=True)
        order = order if by_diagonal else torch.arange(count, device=order.device)
        factor = inverse_factor(own[order][:, order], damping)
        if factor is None:
            return None
        grid = OnGrid(on_grid.grid, scale[group], 0, on_grid.rounding)
        made, nearest = torch.empty_like(flat[group]), grid.codes(flat[group])
        made[:, order] = rounded_in_order(flat[group][:, order], grid, factor)
        cost, of_nearest = (errors_of(grid.values(c) - flat[group], own) for c in (made, nearest))
        codes[group] = torch.where((cost <= of_nearest)[:, None], made, nearest)
    return codes.reshape(rows.shape)


def errors_of(wrong: Tensor, hessian: Tensor) -> Tensor:
    """Return the mean squared error of each row's output, e' H e, float64 [..., C].

    Args:
        wrong: e, what rows lack, [..., C, K].
        hessian: float64 [..., K, K].
    """
    wrong = wrong.double()
    return (wrong @ hessian).mul_(wrong).sum(-1)

"""Codes and scales by coordinate descent: each in turn the best, all others as they are.

With e = w - s z for a row w of the weight, its codes z and their scale s, and H the second moments
of what the row is multiplied by, e' H e is the mean squared error of the output. It is least, where
only one of its terms may change,

    for the scale       s   = (w' H z) / (z' H z)
    for the code i      z_i = the nearest to  (w_i + (sum over j != i of H_ij e_j) / H_ii) / s

so that the error never rises. GPTQ goes through the columns once and makes up for a column's error
by those behind it; here those before it answer, too, and the scale is that of the codes there are.

Reference: Zhang et al., 2024, COMQ, arXiv:2403.07134; for codes alone Behdin et al., 2023,
QuantEase, arXiv:2309.01885.
"""

import torch
from torch import Tensor

from qtool.numerics.on_grid import OnGrid
from qtool.numerics.saturation import Neighbours
from qtool.post_training.gptq import DAMPING

SWEEPS = 4
AIM_DAMPING = 0.1  # of the mean of H's diagonal, where the weight itself is aimed anew


@torch.no_grad()
def descended(
    rows: Tensor,
    on_grid: OnGrid,
    codes: Tensor,
    hessian: Tensor,
    *,
    scales: bool,
    neighbours: Neighbours | None = None,
) -> tuple[Tensor, Tensor]:
    """Return better codes, shaped as those given, and scales of codes, shaped as the grid's.

    Args:
        rows: float32 [C, in / groups, ...] of a weight.
        on_grid: their grid, its scale [] or [C, 1, ...].
        codes: to begin with, shaped as the rows.
        hessian: float64 [groups, K, K], second moments of the inputs, not all zero.
        scales: may change, too.
        neighbours: whose codes may go so far together only; those given do not go farther.
    """
    groups, count = hessian.shape[:2]
    damped = hessian.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal += DAMPING * diagonal.mean(1, keepdim=True)
    weight = rows.reshape(groups, -1, count).double()
    shape = on_grid.scale.shape
    scale = on_grid.scale.double().reshape(-1, 1).expand(len(rows), 1)
    scale = scale.reshape(groups, -1, 1).contiguous()
    found = codes.reshape(groups, -1, count).double()
    for _ in range(SWEEPS):
        if scales:
            scale = _best_scale(weight, found, damped, scale, shared=len(shape) == 0)
        changed = _sweep(weight, found, damped, scale, on_grid, neighbours=neighbours)
        if not changed:
            break
    one = scale.reshape(-1)[:1].reshape(shape) if len(shape) == 0 else scale.reshape(shape)
    return found.reshape(codes.shape).to(codes.dtype), one.to(on_grid.scale.dtype)


@torch.no_grad()
def aimed(rows: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """Return the weight that makes of inputs that are rounded by now what the float network gives.

        w + (mean of (y - w x) x') (mean of x x' + damping)^-1

    by which a layer makes up for what those before it lack. Of y - w x the mean is left to the
    bias. Where the weight that the first half of the positions ask for is no better on the second
    half, as where there are too few of them, it stays as it is.

    Args:
        rows: float32 [C, in / groups, ...] of the weight.
        given: x, [P, groups, K].
        wanted: y, [P, C], without the bias.

    Reference: the target of asymmetric calibration, Li et al., 2025, GPTAQ, arXiv:2504.02692.
    """
    groups = given.shape[1]
    weight = rows.reshape(groups, -1, given.shape[2]).double()
    x = given.transpose(0, 1).double()  # [groups, P, K]
    y = wanted.double().reshape(len(given), groups, -1).transpose(0, 1)
    half = len(given) // 2
    tried = _nearest(weight, x[:, :half], y[:, :half])
    if not _error(tried, x[:, half:], y[:, half:]) < _error(weight, x[:, half:], y[:, half:]):
        return rows
    return _nearest(weight, x, y).to(rows.dtype).reshape(rows.shape)


def _nearest(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the weight [groups, C / groups, K] that makes y of x, near the one given."""
    left = y - x @ weight.transpose(1, 2)
    left = left - left.mean(1, keepdim=True)
    damped = x.transpose(1, 2) @ x
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal += AIM_DAMPING * diagonal.mean(1, keepdim=True) + torch.finfo(x.dtype).tiny
    return weight + torch.linalg.solve(damped, left.transpose(1, 2) @ x, left=False)


def _error(weight: Tensor, x: Tensor, y: Tensor) -> float:
    """Return the summed variance of y - w x over positions."""
    return float((y - x @ weight.transpose(1, 2)).var(1, correction=0).sum())


def _best_scale(
    weight: Tensor, codes: Tensor, hessian: Tensor, scale: Tensor, *, shared: bool
) -> Tensor:
    """Return the scales of the least error, [groups, C / groups, 1]; the old one where none is."""
    moved = codes @ hessian
    above = (moved * weight).sum(2, keepdim=True)
    below = (moved * codes).sum(2, keepdim=True)
    if shared:
        above, below = above.sum().expand_as(above), below.sum().expand_as(below)
    best = above / below.clamp(min=torch.finfo(below.dtype).tiny)
    return torch.where((best > scale / 4) & (best < 4 * scale), best, scale)


def _sweep(
    weight: Tensor,
    codes: Tensor,
    hessian: Tensor,
    scale: Tensor,
    on_grid: OnGrid,
    *,
    neighbours: Neighbours | None,
) -> bool:
    """Choose each column's code once, in place; tell whether any has changed."""
    wrong = weight - codes * scale
    pulled = wrong @ hessian  # [groups, C / groups, K]
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    grid = OnGrid(on_grid.grid, scale[..., 0].float(), 0, on_grid.rounding)
    changed = False
    others = None if neighbours is None else neighbours.other.tolist()
    for column in range(weight.shape[2]):
        own = diagonal[:, column, None]
        alone = codes[..., column] * scale[..., 0] + pulled[..., column] / own
        made = grid.codes(alone.float()).double()
        if neighbours is not None and others is not None and others[column] != column:
            made = neighbours.held(made, codes[..., others[column]])
        step = (codes[..., column] - made) * scale[..., 0]  # what it adds to what is wrong
        if bool(step.any()):
            changed = True
            codes[..., column] = made
            pulled += step.unsqueeze(2) * hessian[:, column].unsqueeze(1)
    return changed

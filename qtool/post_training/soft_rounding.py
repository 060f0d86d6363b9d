"""Rounding that can be learned: each weight goes down or up, by a number between 0 and 1.

    w~ = s (clip(floor(w / s + o) + h(V), low, high) - o)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),   zeta = 1.1, gamma = -0.1

A regularizer, sum 1 - |2 h(V) - 1|^beta, whose beta falls, drives every h to 0 or 1.

Reference: Nagel et al., 2020, arXiv:2004.10568 (AdaRound).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.numerics.on_grid import OnGrid

ATEN = torch.ops.aten  # derivatives in one pass over memory
GAMMA, ZETA = -0.1, 1.1
FIRST_BETA, LAST_BETA = 20.0, 2.0
WARM = 0.2  # share of the iterations without the regularizer


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Return h(V), 0..1, same shape.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.sigmoid(v).mul(ZETA - GAMMA).add_(GAMMA).clamp_(0, 1)


def start_of(fraction: Tensor) -> Tensor:
    """Return the V whose h(V) is a fraction, 0 <= fraction < 1: what rounds nothing at first."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def regularizer(h: Tensor, beta: float) -> Tensor:
    """Return sum 1 - |2 h - 1|^beta, []; 0 once every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(progress: float) -> float | None:
    """Return beta at a share of the iterations; None while the regularizer waits.

    It falls linearly, from a regularizer that holds only what is decided to one that decides.

    >>> beta_at(0.1), beta_at(0.2), beta_at(0.6), beta_at(1.0)
    (None, 20.0, 11.0, 2.0)
    """
    if progress < WARM:
        return None
    return FIRST_BETA + (LAST_BETA - FIRST_BETA) * (progress - WARM) / (1 - WARM)


@dataclass(frozen=True)
class SoftRows:
    """The rows of a weight while their rounding is learned.

    Attributes:
        down: the whole steps below each element, float32 [C, ...].
        v: parameter, float32 [C, ...].
        on_grid: of the rows.
        reach: by how much an element moves as its h goes from 0 to 1, float32 [C, ...].
    """

    down: Tensor
    v: nn.Parameter
    on_grid: OnGrid
    reach: Tensor

    @classmethod
    def of(cls, rows: Tensor, on_grid: OnGrid) -> "SoftRows":
        """Return rows [C, ...] that are not rounded yet, but lie within the grid."""
        grid, rows = on_grid.grid, rows.contiguous()  # as gradients are: fused Adam reads memory
        steps = rows / on_grid.step + grid.offset
        down = torch.floor(steps)
        v = start_of((steps - down).clamp(0, 1))
        moves = (down >= grid.qmin) & (down < grid.qmax)
        return cls(down, nn.Parameter(v.clone()), on_grid, on_grid.step * moves)

    @torch.no_grad()
    def gradient(self, grad: Tensor, h: Tensor, *, weight: float, beta: float | None) -> Tensor:
        """Return the gradient of a loss and the regularizer with respect to V, shaped as it is.

            (g s [low <= floor(w / s + o) < high] - weight * 2 beta |2 h - 1|^(beta - 1)
              sign(2 h - 1)) h'(V)

        Args:
            grad: of the loss with respect to w~; it is overwritten.
            h: of V.
            weight: of the regularizer.
            beta: of the regularizer; None where that waits.
        """
        inner = grad.mul_(self.reach)
        if beta is not None:
            apart = h.mul(2).sub_(1)
            pull = apart.abs().pow_(beta - 1).copysign_(apart)
            inner.sub_(pull, alpha=2 * beta * weight)
        sigmoid = h.sub(GAMMA).div_(ZETA - GAMMA)
        inner = ATEN.sigmoid_backward(inner, sigmoid).mul_(ZETA - GAMMA)
        return ATEN.hardtanh_backward(inner, h, 0.0, 1.0)  # 0 where h is 0 or 1

    def h(self) -> Tensor:
        """Return the share of a step that each element goes up by."""
        return rectified_sigmoid(self.v)

    def rows(self, h: Tensor) -> Tensor:
        """Return w~, float32 [C, ...]."""
        grid = self.on_grid.grid
        q = torch.add(self.down, h).clamp_(grid.qmin, grid.qmax)
        return q.sub_(grid.offset).mul_(self.on_grid.step)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the codes of what was learned, each h taken for 0 or 1."""
        grid = self.on_grid.grid
        q = (self.down + (self.h() >= 0.5)).clamp(grid.qmin, grid.qmax)
        return 2 * q - 1 if grid.kind == "mid_rise" else q

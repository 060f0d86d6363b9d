"""The backward pass of the rounding on a CPU: fast forms of estimators, few passes over memory.

Bounds, and a scale of one number, are read from their tensors here, which costs a CPU nothing.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from qtool.numerics.fast_estimators import (
    Fast,
    Limits,
    closed,
    half_open,
    limits_before_division,
    stop_outside,
)
from qtool.quantizers.scale_gradient import Backward, Sums

BLOCK = 1 << 18  # elements; three float32 blocks, shared by two cores, fit their L2 caches
FEW = 1 << 12  # elements that are divided again sooner than limits of x are found
_Part = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of the gradient, x, the result and x_hat


def by_parts(
    fast: Fast,
    how: Backward,
    sums: Sums,
    grad: Tensor,
    x: Tensor,
    *,
    x_hat: Tensor | None,
    scale: Tensor,
    bounds: tuple[float, float],
    offset: float,
) -> Tensor:
    """Return the gradient of x by a fast form, block by block where there is one scale."""
    (low, high), one_scale = bounds, scale.ndim == 0
    straight = closed(low, high, x.dtype)
    # at low = 0 the gradients that only half_open stops are multiplied by x = 0
    same = fast.limits is closed or (fast.limits is half_open and low == 0 == offset)
    limits: Limits | None = straight
    if fast.limits is not closed:
        limits = None if fast.limits is None else fast.limits(low, high, x.dtype)
    divides = fast.slope is not None or offset or not one_scale or x.numel() <= FEW
    step = scale.item() if one_scale else 0.0
    if not divides and x.dtype == torch.float32:
        limits = limits and limits_before_division(limits, step)
        if x_hat is not None and not same:
            straight = limits_before_division(straight, step)
    else:
        divides = True
    chain = how.scale_rule == "chain_rule"
    # above a top that lies within the grid nothing is learned; below 0, where x_hat is 0, neither
    level = how.top is not None and x_hat is not None and how.number_reaches(step)
    out = torch.empty_like(x)
    parts: Iterable[_Part] = ((grad, x, out, x_hat),)
    if one_scale and not (fast.slope is None and x_hat is None):
        # without a slope the passes are too few for blocks to pay off
        size = x.numel() if fast.slope is None else BLOCK
        parts = _blocks(max(1, size), grad, x, out, x_hat)
    for g, x_part, out_part, hat in parts:
        u = torch.div(x_part, scale) if divides else x_part
        if offset:
            u.add_(offset)
        kept = g if limits is None else stop_outside(g, u, limits, out_part)
        if hat is not None and not chain:
            inner = kept if same else stop_outside(g, u, straight, torch.empty_like(g))
            spare = u if divides and fast.slope is None and not one_scale else None
            sums.add(inner if level else g, inner, x_part, hat, spare)
        if fast.slope is not None:
            fast.slope(kept, u, low, high, out_part)
            kept = out_part
        if hat is not None and chain:
            sums.add(g, kept, x_part, hat)
    return grad if fast.limits is None and fast.slope is None else out


def _blocks(
    size: int, grad: Tensor, x: Tensor, out: Tensor, x_hat: Tensor | None
) -> Iterator[_Part]:
    """Yield the same block of each tensor in the memory order of `out`, by views where it can."""
    grad, x, flat = (_in_order_of(out, tensor) for tensor in (grad, x, out))
    hat = None if x_hat is None else _in_order_of(out, x_hat)
    if out.numel() <= size:
        yield grad, x, flat, hat
        return
    for start in range(0, out.numel(), size):
        part = slice(start, start + size)
        yield grad[part], x[part], flat[part], None if hat is None else hat[part]


def _in_order_of(like: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor flat, in the memory order of `like`; one of other strides is copied."""
    if tensor.stride() != like.stride():
        tensor = torch.empty_like(like).copy_(tensor)
    return tensor.as_strided((like.numel(),), (1,))

"""The rounding itself, with its backward pass, as one autograd function.

Forward, in float32 unless x is float64:

    x_hat = s * (clamp(round(x / s + o), low, high) - o)

Backward: g_x is the estimator's. A learned scale gets the chain rule of s * Q(x / s),

    ds = (<g, x_hat> - <g_x, x>) / s,

which is LSQ's where g_x is straight_through's. On a CPU this goes over the tensors in blocks that
fit the cache, with the estimator's fast form where it has one. Where a compiler traces the whole
model, or on other devices, it is plain tensor arithmetic: nothing waits for a number.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from qtool.numerics.estimators import Bound, straight_through
from qtool.numerics.fast_estimators import (
    Fast,
    closed,
    fast_form,
    half_open,
    limits_before_division,
    stop_outside,
)
from qtool.numerics.grid import round_to_steps
from qtool.numerics.ranges import above_floor
from qtool.numerics.roundings import Rounding, ceil, half_to_even
from qtool.numerics.steps import widen
from qtool.quantizers import kernels
from qtool.quantizers.scale_gradient import Backward, Sums, level_at_top

BLOCK = 1 << 18  # elements; three float32 blocks, shared by two cores, fit their L2 caches
FEW = 1 << 16  # elements that are divided again sooner than limits of x are found
_Part = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of the gradient, x, the result and x_hat


class _Context(Protocol):
    """What the forward pass leaves to the backward pass, in torch's own object.

    Attributes:
        bounds: low and high in steps; numbers on a CPU.
        shifted: whether an offset is learned.
        compiles: whether the forward was a compiled kernel.
        saved_tensors: x, the scale and, for a learned scale, x_hat.
    """

    bounds: tuple[Bound, Bound]
    offset: float
    rounding: Rounding
    how: Backward
    shifted: bool
    compiles: bool
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, Tensor, Tensor | None]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors."""
        ...


class RoundToGrid(torch.autograd.Function):
    """Forward: divide, round, saturate, multiply. Backward: whatever the estimator says.

    Saves x and, for a learned scale, x_hat (which the layer keeps anyway, unless the model
    overwrites it); u is recomputed. A scale below the smallest counts as that, and gets its
    gradient.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  torch's apply takes no keywords
        ctx: _Context,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        low: Bound,
        high: Bound,
        offset: float,
        rounding: Rounding,
        how: Backward,
    ) -> Tensor:
        """Return x_hat, of the shape and dtype of x."""
        if _by_numbers(x):
            low, high = float(low), float(high)
        scale = above_floor(scale)  # the next call may change it before this one's backward
        ctx.bounds, ctx.offset, ctx.how, ctx.shifted = (low, high), offset, how, shift is not None
        ctx.rounding = rounding
        x_hat = None
        ctx.compiles = how.compiles and shift is None and kernels.can_compile(rounding, x)
        if ctx.compiles and isinstance(low, float) and isinstance(high, float):
            try:
                x_hat = kernels.forward(x, scale, low, high, offset=offset, rounding=rounding)
            except Exception as error:  # compilers fail in many ways
                kernels.give_up(error)
        if x_hat is None:
            ctx.compiles, x_hat = False, _rounded(x, scale, (low, high), offset, rounding)
        keeps = ctx.needs_input_grad[1] and not ctx.compiles
        kept = x_hat if keeps else None
        if keeps and how.overwritten:  # what is rounded at random cannot be rounded again
            kept = None if rounding in (half_to_even, ceil) else x_hat.clone()
        ctx.save_for_backward(x, scale, kept)
        return x_hat

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, scale and shift."""
        x, scale, x_hat = ctx.saved_tensors
        how = ctx.how
        if ctx.compiles:
            try:
                return _by_kernels(ctx, grads[0], x, scale)
            except Exception as error:  # such as a user's estimator that cannot be traced
                kernels.give_up(error)
        if ctx.needs_input_grad[1] and x_hat is None:
            x_hat = _rounded(x, scale, ctx.bounds, ctx.offset, ctx.rounding)
        hat = None if x_hat is None else widen(x_hat)
        sums = Sums(how, scale, shifted=ctx.shifted)
        fast = fast_form(how.estimator) if _by_numbers(x) else None
        if how.top is not None and how.scale_rule == "chain_rule":
            fast = None
        if fast is None:
            grad_x = _at_once(ctx, sums, widen(grads[0]), widen(x), x_hat=hat, scale=scale)
        else:
            grad, wide = widen(grads[0]), widen(x)
            grad_x = _in_parts(fast, ctx, sums, grad, wide, x_hat=hat, scale=scale)
        grad_scale = grad_shift = None
        if sums.products is not None:
            grad_scale = level_at_top(how, sums, scale).div_(scale)
            if ctx.shifted:
                # the offset beta stays where it is when s moves: x_hat saturates at s q + beta
                grad_scale.sub_(ctx.bounds[0] * sums.saturated)
                grad_shift = torch.mul(sums.saturated, how.factor)
            grad_scale.mul_(how.factor)
            if how.decay:
                grad_scale.add_(scale, alpha=how.decay)
        return grad_x.to(x.dtype), grad_scale, grad_shift, None, None, None, None, None


def _by_numbers(x: Tensor) -> bool:
    """Tell whether reading a number from a tensor beside x costs nothing."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _rounded(
    x: Tensor, scale: Tensor, bounds: tuple[Bound, Bound], offset: float, rounding: Rounding
) -> Tensor:
    """Return x_hat, of the shape and dtype of x."""
    x_hat = round_to_steps(x, scale, *bounds, offset, rounding)
    if offset:
        x_hat.sub_(offset)
    return x_hat.mul_(scale).to(x.dtype)


def _by_kernels(ctx: _Context, grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor | None, ...]:
    """Return what `RoundToGrid.backward` returns, by compiled kernels."""
    how = ctx.how
    low, high = ctx.bounds
    grad_x, grad_scale = kernels.backward(
        grad,
        x,
        scale,
        how.estimator,
        bounds=(float(low), float(high)),
        offset=ctx.offset,
        rule=how.scale_rule if ctx.needs_input_grad[1] else None,
        rounding=ctx.rounding,
        top=how.top,
    )
    if grad_scale is not None:
        grad_scale = grad_scale.mul_(how.factor)
        if how.decay:
            grad_scale.add_(scale, alpha=how.decay)
    return grad_x, grad_scale, None, None, None, None, None, None


def _at_once(
    ctx: _Context, sums: Sums, grad: Tensor, x: Tensor, *, x_hat: Tensor | None, scale: Tensor
) -> Tensor:
    """Return the gradient of x by any estimator, on any device."""
    how = ctx.how
    u = torch.div(x, scale)
    if ctx.offset:
        u.add_(ctx.offset)
    inner = grad_x = how.estimator(grad, u, *ctx.bounds)
    if x_hat is not None:
        if how.scale_rule != "chain_rule" and how.estimator is not straight_through:
            inner = straight_through(grad, u, *ctx.bounds)
        sums.add(grad, inner, x, x_hat)
        if how.top is not None and not sums.clips:
            sums.above = torch.where(u > ctx.bounds[1], grad - inner, 0.0).sum()
    return grad_x


def _in_parts(
    fast: Fast,
    ctx: _Context,
    sums: Sums,
    grad: Tensor,
    x: Tensor,
    *,
    x_hat: Tensor | None,
    scale: Tensor,
) -> Tensor:
    """Return the gradient of x by a fast form, block by block where there is one scale."""
    how, offset = ctx.how, ctx.offset
    low, high = (float(bound) for bound in ctx.bounds)
    straight = closed(low, high, x.dtype)
    limits = None if fast.limits is None else fast.limits(low, high, x.dtype)
    divides = fast.slope is not None or offset or scale.ndim or x.numel() <= FEW
    divides = divides or x.dtype != torch.float32
    step = 0.0 if divides else scale.item()
    if not divides:
        straight = limits_before_division(straight, step)
        limits = limits and limits_before_division(limits, step)
    # at low = 0 the gradients that only half_open stops are multiplied by x = 0
    same = fast.limits is closed or (fast.limits is half_open and low == 0 == offset)
    chain = how.scale_rule == "chain_rule"
    over = None  # limits for what lies above a clip's top, where that is within the grid
    if how.top is not None and not sums.clips and float(scale) * how.top[1] >= how.top[0]:
        over = high, math.inf
        over = over if divides else limits_before_division(over, step)
    out = torch.empty_like(x)
    parts: Iterable[_Part] = [(grad, x, out, x_hat)]
    if scale.ndim == 0:  # without a slope the passes are too few for blocks to pay off
        size = x.numel() if fast.slope is None else BLOCK
        parts = _blocks(max(1, size), grad, x, out, x_hat)
    for g, x_part, out_part, hat in parts:
        u = torch.div(x_part, scale) if divides else x_part
        if offset:
            u.add_(offset)
        kept = g if limits is None else stop_outside(g, u, limits, out_part)
        if hat is not None and not chain:
            inner = kept if same else stop_outside(g, u, straight, torch.empty_like(g))
            sums.add(g, inner, x_part, hat)
        above = None if over is None else stop_outside(g, u, over, torch.empty_like(g))
        if fast.slope is not None:
            fast.slope(kept, u, low, high, out_part)
            kept = out_part
        if hat is not None and chain:
            sums.add(g, kept, x_part, hat)
        if above is not None:
            sums.above = sums.above + above.sum()
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

"""The rounding itself, with its backward pass, as one autograd function.

Forward, in float32 unless x is float64:

    x_hat = s * (clamp(round(x / s + o), low, high) - o)

Backward: g_x is the estimator's. A learned scale gets the chain rule of s * Q(x / s),

    ds = (<g, x_hat> - <g_x, x>) / s,

which is LSQ's where g_x is straight_through's. On a CPU this goes over the tensors in blocks that
fit the cache, with the estimator's fast form where it has one. Where a compiler traces the whole
model, or on other devices, it is plain tensor arithmetic: nothing waits for a number.
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from qtool.numerics.estimators import Bound, straight_through
from qtool.numerics.fast_estimators import fast_form
from qtool.numerics.grid import round_to_steps
from qtool.numerics.roundings import Rounding, additive_noise, ceil, half_to_even
from qtool.numerics.scales import above_floor
from qtool.numerics.steps import widen
from qtool.quantizers import kernels
from qtool.quantizers.cpu_backward import by_parts
from qtool.quantizers.scale_gradient import Backward, Sums


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

    Saves x and, for a learned scale, x_hat where someone else keeps it anyway, as layers do; what
    the model overwrites, or only adds up, is rounded again. u is recomputed. A scale below the
    smallest counts as that, and gets its gradient.
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
        if not isinstance(high, float) and by_numbers(x):
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
        kept = x_hat if ctx.needs_input_grad[1] and not ctx.compiles else None
        if kept is not None and (how.overwritten or how.unkept):
            if rounding in (half_to_even, ceil):
                kept = None
            elif how.overwritten:  # what is random cannot be rounded again
                kept = x_hat.clone()
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
        grad, wide = widen(grads[0]), widen(x)
        hat = None if x_hat is None else widen(x_hat)
        sums = Sums(how, scale, shifted=ctx.shifted)
        fast = fast_form(how.estimator) if by_numbers(x) else None
        if fast is None or (how.top is not None and how.scale_rule == "chain_rule"):
            grad_x = _at_once(ctx, sums, grad, wide, x_hat=hat, scale=scale)
        else:
            bounds = float(ctx.bounds[0]), float(ctx.bounds[1])
            grad_x = by_parts(
                fast,
                how,
                sums,
                grad,
                wide,
                x_hat=hat,
                scale=scale,
                bounds=bounds,
                offset=ctx.offset,
            )
        grad_scale = grad_shift = None
        if sums.products is not None:
            grad_scale = sums.products.div_(scale)
            if ctx.shifted:
                # the offset beta stays where it is when s moves: x_hat saturates at s q + beta
                grad_scale.sub_(ctx.bounds[0] * sums.saturated)
                grad_shift = torch.mul(sums.saturated, how.factor)
            grad_scale.mul_(how.factor)
            if how.decay:
                grad_scale.add_(scale, alpha=how.decay)
        grad_x = grad_x if grad_x.dtype == x.dtype else grad_x.to(x.dtype)
        return grad_x, grad_scale, grad_shift, None, None, None, None, None


def by_numbers(x: Tensor) -> bool:
    """Tell whether reading a number from a tensor beside x costs nothing."""
    return x.is_cpu and not torch.compiler.is_compiling()


def _rounded(
    x: Tensor, scale: Tensor, bounds: tuple[Bound, Bound], offset: float, rounding: Rounding
) -> Tensor:
    """Return x_hat, of the shape and dtype of x."""
    x_hat = round_to_steps(x, scale, *bounds, offset, rounding)
    if offset:
        x_hat.sub_(offset)
    # torch 2.11 traces a zero gradient through what such a function computed in place at its end
    x_hat = x_hat.mul(scale) if torch.compiler.is_compiling() else x_hat.mul_(scale)
    return x_hat if x_hat.dtype == x.dtype else x_hat.to(x.dtype)


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
        if how.top is not None:  # beyond a top that lies within the grid nothing is learned
            beyond = (u > ctx.bounds[1]) & how.reaches(scale)
            grad, inner = (torch.where(beyond, 0.0, g) for g in (grad, inner))
        sums.add(grad, inner, x, x_hat)
    return grad_x


def with_noise(
    x: Tensor, scale: Tensor, bounds: tuple[Bound, Bound], offset: float, factor: float
) -> Tensor:
    """Return x with noise in place of rounding, saturated, in a form that torch differentiates.

    Only the gradient of the scale is not exact but LSQ's, smaller by `factor`.
    """
    scale = scale * factor + (scale * (1 - factor)).detach()
    u = additive_noise(x.float() / scale + offset)
    low, high = cast(tuple[float, float], bounds)
    return ((u.clamp(low, high) - offset) * scale).to(x.dtype)

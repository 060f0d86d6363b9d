"""Fake quantization: integer values, float storage, so that training can go on.

A FakeQuantize holds the scale of one tensor. Its forward is always the same hard rounding,

    x_hat = s * (clamp(round(x / s + o), low, high) - o),   low = qmin - z, high = qmax - z,

in float32 whatever the type of x; its backward is the chosen estimator. With a blend it is
(1 - alpha) x + alpha x_hat instead, with the gradient through the first term only.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from qtool.numerics.estimators import ESTIMATORS, Bound, Estimator, straight_through
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import RANGES, SMALLEST_SCALE
from qtool.numerics.schedules import SCHEDULES, Schedule
from qtool.quantizers.settings import TensorQuantization


class _FakeQuantize(torch.autograd.Function):
    """Forward: divide, round, saturate, multiply. Backward: whatever the estimator says.

    Saves x and, for a learned scale, x_hat (which the layer keeps anyway); u is recomputed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        low: Bound,
        high: Bound,
        offset: float,
        estimator: Estimator,
        scale_factor: float,
        chain_rule: bool,
    ) -> Tensor:
        x_hat = torch.div(x.float(), scale)
        if offset:
            x_hat.add_(offset)
        # both bounds are numbers or both are tensors, which their union cannot say
        x_hat.round_().clamp_(low, high)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if offset:
            x_hat.sub_(offset)
        x_hat = x_hat.mul_(scale).to(x.dtype)
        ctx.save_for_backward(x, scale, x_hat if ctx.needs_input_grad[1] else None)
        ctx.bounds, ctx.offset, ctx.estimator = (low, high), offset, estimator
        ctx.scale_factor, ctx.chain_rule = scale_factor, chain_rule
        return x_hat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, x_hat = ctx.saved_tensors
        grad, x32 = grads[0].float(), x.float()
        u = torch.div(x32, scale)
        if ctx.offset:
            u.add_(ctx.offset)
        grad_x = ctx.estimator(grad, u, *ctx.bounds)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # ds = (<g, x_hat> - <g_x, x>) / s, the chain rule of s * Q(x / s)
            inner = grad_x
            if not ctx.chain_rule and ctx.estimator is not straight_through:
                inner = straight_through(grad, u, *ctx.bounds)
            products = (grad * x_hat.float()).addcmul_(inner, x32, value=-1)
            grad_scale = products.sum_to_size(scale.shape).div_(scale).mul_(ctx.scale_factor)
        return grad_x.to(x.dtype), grad_scale, None, None, None, None, None, None


class FakeQuantize(nn.Module):
    """Round a tensor to its grid and scale it back.

    Attributes:
        scale: float32 step size; [] per tensor, [C, 1, ...] per output channel. A Parameter
            where the range is learned, else a buffer.
        zero_point: float32 integer that represents 0.0, []; 0 but on the asymmetric grid.
        alpha: float32 [], the share of x_hat in a blend; 1 without one.
        grid: the integers allowed; None until the first values decide an `auto` grid.
    """

    scale: Tensor
    zero_point: Tensor
    alpha: Tensor

    def __init__(self, settings: TensorQuantization, bits: int, grid: IntegerGrid | None) -> None:
        super().__init__()
        self.settings, self.bits = settings, bits
        self.grid = grid
        self.ready, self.progress = False, 0.0
        self.rule = RANGES.build(settings.range.name, **settings.range.params)
        self.learns = settings.range.name == "learned"
        self.blend: Schedule | None = None
        self.estimator: Estimator = straight_through
        if settings.blend is not None:
            self.blend = SCHEDULES.build(settings.blend.name, **settings.blend.params)
        elif settings.estimator is not None:
            self.estimator = ESTIMATORS.build(settings.estimator.name, **settings.estimator.params)
        if self.learns:
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("alpha", torch.tensor(1.0 if self.blend is None else self.blend(0.0)))

    @property
    def gradient(self) -> str:
        """Return what stands in for the gradient of rounding: an estimator, or a blend."""
        return str(self.settings.estimator or f"blend {self.settings.blend}")

    @property
    def known_grid(self) -> IntegerGrid:
        """Return the grid.

        Raises:
            RuntimeError: If no values were seen yet that decide it.
        """
        if self.grid is None:
            raise RuntimeError("the grid is not known before the first forward pass")
        return self.grid

    def set_progress(self, progress: float) -> None:
        """Move the blend to its value at `progress`, the share of training done."""
        self.progress = progress
        if self.blend is not None:
            self.alpha.fill_(self.blend(progress))

    def bounds(self) -> tuple[Bound, Bound]:
        """Return low and high in steps: numbers, or tensors [] where there is a zero point."""
        grid = self.known_grid
        if grid.kind == "asymmetric":
            return grid.qmin - self.zero_point, grid.qmax - self.zero_point
        return float(grid.qmin), float(grid.qmax)

    def round_to_grid(self, x: Tensor) -> Tensor:
        """Return x_hat, or the blend of x and x_hat; same shape and dtype as x."""
        grid = self.known_grid
        if self.learns:
            with torch.no_grad():
                self.scale.clamp_(min=SMALLEST_SCALE)
        values = max(1, x.numel() // self.scale.numel())
        x_hat = cast(
            Tensor,
            _FakeQuantize.apply(
                x if self.blend is None else x.detach(),
                self.scale.clone(),  # the next call may change it before this one's backward
                *self.bounds(),
                grid.offset,
                self.estimator,
                (values * grid.qmax) ** -0.5,
                self.settings.scale_gradient == "chain_rule",
            ),
        )
        if self.blend is None:
            return x_hat
        return (1 - self.alpha) * x + self.alpha * x_hat

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the tensors."""
        return {"ready": self.ready, "grid": self.grid and self.grid.kind}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what `get_extra_state` returned."""
        self.ready = state["ready"]
        self.grid = IntegerGrid(self.bits, state["grid"]) if state["grid"] else None

    def extra_repr(self) -> str:
        """Show the grid and the choices in `print(model)`."""
        grid = self.grid.kind if self.grid else "auto"
        return f"{self.bits} bits, {grid}, {self.settings.range}, {self.gradient}"

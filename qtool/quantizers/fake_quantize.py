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
from qtool.numerics.ranges import RANGES, SMALLEST_SCALE, min_max_to_scale, min_to_zero_point
from qtool.numerics.schedules import SCHEDULES, Schedule
from qtool.quantizers.settings import (
    ActivationQuantization,
    TensorQuantization,
    WeightQuantization,
)

SAMPLE = 16_384  # values kept of each calibration batch for a range rule to look at


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
            choice = settings.estimator
            self.estimator = (
                ESTIMATORS.build(choice.name, **choice.params)
                if choice.params
                else ESTIMATORS[choice.name]
            )
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


class WeightQuantizer(FakeQuantize):
    """Fake quantization of a weight: scales per tensor or per output channel.

    A range that is not learned is fitted to the weight again every so many training steps, until
    alpha of a blend reaches 1: from then on the scales, and so the codes, are frozen.
    """

    def __init__(self, settings: WeightQuantization, weight: Tensor) -> None:
        super().__init__(settings, settings.bits, settings.integer_grid)
        self.refit_every = settings.refit_every or (1 if settings.range.name == "absmax" else 100)
        self.steps = 0
        self.frozen = False
        shape = [1] * weight.ndim
        if settings.granularity == "per_channel":
            shape[0] = weight.shape[0]
        if settings.granularity == "per_tensor":
            shape = []
        self.scale.data = torch.ones(shape, device=weight.device)
        self.to(weight.device)
        self.fit(weight)

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Set the scales from the weight [C, ...] by the range rule."""
        channels = self.scale.numel() if self.scale.ndim else 1
        rows = weight.detach().float().reshape(channels, -1)
        self.scale.copy_(self.rule(rows, self.known_grid).reshape(self.scale.shape))
        self.ready = True

    @property
    def blend_is_done(self) -> bool:
        """Tell whether there is a blend and alpha has reached 1."""
        return self.blend is not None and self.blend(self.progress) >= 1.0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        fits = not self.learns and not self.frozen
        if self.training and torch.is_grad_enabled() and fits:
            if self.steps % self.refit_every == 0:
                self.fit(weight)
            self.steps += 1
        return self.round_to_grid(weight)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the tensors."""
        return super().get_extra_state() | {"steps": self.steps, "frozen": self.frozen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what `get_extra_state` returned."""
        super().set_extra_state(state)
        self.steps, self.frozen = state["steps"], state["frozen"]


class ActivationQuantizer(FakeQuantize):
    """Fake quantization of a layer's input: one scale, set from the first values it sees.

    Attributes:
        observed: float32 [2], the smallest and largest value, averaged over batches where the
            range is ema_min_max.
        watching: while true, values are collected and passed on as they are.
    """

    observed: Tensor

    def __init__(self, settings: ActivationQuantization) -> None:
        kind = settings.grid
        grid = None if kind == "auto" else IntegerGrid(settings.bits, kind)
        super().__init__(settings, settings.bits, grid)
        self.decides_grid = kind == "auto"
        self.register_buffer("observed", torch.zeros(2))
        self.follows = settings.range.name == "ema_min_max"
        self.decay = settings.range.params.get("decay", 0.99)
        self.watching = False
        self._samples: list[Tensor] = []

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """Collect the extremes of x and an even sample of its values."""
        values = x.detach().float().flatten()
        extremes = torch.stack([values.amin(), values.amax()])
        if self.follows and self._samples:
            self.observed.lerp_(extremes.clone(), 1 - self.decay)
        elif self.follows:
            self.observed.copy_(extremes)
        stride = max(1, values.numel() // SAMPLE)
        sampled = [extremes, values[::stride]] if stride > 1 else [values]
        self._samples.append(torch.cat(sampled))

    @property
    def watched(self) -> bool:
        """Tell whether any values were collected."""
        return bool(self._samples)

    def forget(self) -> None:
        """Drop what was watched."""
        self._samples = []

    @torch.no_grad()
    def settle(self) -> None:
        """Set grid, scale and zero point from what was watched."""
        rows = torch.cat(self._samples).unsqueeze(0)
        self._samples = []
        if self.decides_grid:
            kind = "unsigned" if bool(rows.amin() >= 0) else "full"
            self.grid = IntegerGrid(self.bits, kind)
        if self.follows:
            self._follow()
        else:
            self.scale.copy_(self.rule(rows, self.known_grid)[0])
        self.ready = True

    def _follow(self) -> None:
        grid = self.known_grid
        low, high = self.observed[:1].clamp_max(0), self.observed[1:].clamp_min(0)
        self.scale.copy_(min_max_to_scale(low, high, grid)[0])
        if grid.kind == "asymmetric":
            self.zero_point.copy_(min_to_zero_point(low, self.scale, grid)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized input, same shape and dtype."""
        if self.watching:
            self.watch(x)
            return x
        if not self.ready:
            self.watch(x)
            self.settle()
        elif self.follows and self.training:
            with torch.no_grad():
                extremes = torch.stack([x.detach().amin(), x.detach().amax()]).float()
                self.observed.lerp_(extremes, 1 - self.decay)
                self._follow()
        return self.round_to_grid(x)

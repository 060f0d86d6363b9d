"""Fake quantization of inputs: grid and scale from the values that are seen."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.numerics.ranges import SMALLEST_SCALE, min_to_zero_point
from qtool.numerics.roundings import additive_noise
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.settings.tensors import ActivationQuantization

SAMPLE = 16_384  # values kept of each calibration batch for a range rule to look at


class ActivationQuantizer(FakeQuantize):
    """Fake quantization of a layer's input: one scale, set from the first values it sees.

    Attributes:
        observed: float32 [2], the smallest and largest value, averaged over batches where the
            range follows them.
        offset: float32 [], what the grid's lowest level means where that is learned (LSQ+, Bhalgat
            et al., 2020, arXiv:2004.09576), else None; the zero point is round(-offset / s).
        watching: while true, values are collected and passed on as they are.
        looks: whether the values of this training step are taken into `observed`.
        ahead: that is decided before the forward pass, not in it.
    """

    observed: Tensor

    def __init__(self, settings: ActivationQuantization) -> None:
        self.decides_grid = settings.grid == "auto"
        super().__init__(settings, None if self.decides_grid else settings.grid_for(signed=True))
        self.grid_for = settings.grid_for
        learns_offset = self.learns and settings.grid == "asymmetric"
        self.offset = nn.Parameter(torch.zeros(())) if learns_offset else None
        self.register_buffer("observed", torch.zeros(2))
        self.follows = settings.of_range.follows
        self.decay = settings.range_value("decay", 0.0)
        self.every = settings.range_value("every", 1)
        self.steps, self.ahead, self.looks = 0, False, False
        self.watching = False
        self._samples: list[Tensor] = []

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """Collect the extremes of x and an even sample of its values."""
        values = x.detach().float().flatten()
        extremes = _extremes(values)
        if self.follows and self._samples:
            self.observed.lerp_(extremes, 1 - self.decay)
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
            self.grid = self.grid_for(signed=bool(rows.amin() < 0))
        self._fit(self.observed.unsqueeze(0) if self.follows else rows)
        self.ready = True

    def _fit(self, rows: Tensor) -> None:
        """Set scale and zero point from values [1, K] by the range rule."""
        grid = self.known_grid
        self.scale.copy_(self.rule(rows, grid)[0])
        if grid.kind == "asymmetric":
            low = rows.amin(1).clamp_max(0)
            self.zero_point.copy_(min_to_zero_point(low, self.scale, grid)[0])
            if self.offset is not None:
                self.offset.copy_(low[0])

    def forward(self, x: Tensor, rectify: bool = False) -> Tensor:
        """Return the fake-quantized input, same shape and dtype; `rectify` quantizes its ReLU."""
        if rectify and not self._rectifies:
            x, rectify = F.relu(x), False
        if self.watching:
            self.watch(x)
            return x
        if not self.ready:
            self.watch(x)
            self.settle()
        elif self.follows and self.training:
            if not self.ahead:
                self._count_step()
            if self.looks:
                self._follow(x.detach(), rectify)
        self.place_zero_point()
        return self.round_to_grid(x, self.offset)

    def begin_step(self) -> None:
        """Decide, before a training step's forward pass, whether to look at its values."""
        self.ahead = True
        self._count_step()

    def _count_step(self) -> None:
        self.looks = self.follows and self.steps % self.every == 0
        self.steps += 1

    @torch.no_grad()
    def _follow(self, x: Tensor, rectify: bool) -> None:
        """Take the extremes of x, or of its ReLU, into the moving average that sets the scale."""
        extremes = _extremes(x).float()
        extremes = extremes.clamp_min_(0) if rectify else extremes
        self.observed.lerp_(extremes, 1 - self.decay**self.every)
        self._fit(self.observed.unsqueeze(0))

    @property
    def _rectifies(self) -> bool:
        """Tell whether rounding is ReLU, too: it saturates at zero, and keeps nothing below."""
        if self.watching or not self.ready or self.blend is not None:
            return False
        return self.known_grid.kind == "unsigned" and self.rounding is not additive_noise

    @torch.no_grad()
    def place_zero_point(self) -> None:
        """Put the zero point where a learned offset and scale have moved to."""
        if self.offset is not None:
            scale = self.scale.clamp_min(SMALLEST_SCALE)
            self.zero_point.copy_(min_to_zero_point(self.offset, scale, self.known_grid))

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the tensors."""
        return super().get_extra_state() | {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what `get_extra_state` returned."""
        super().set_extra_state(state)
        self.steps = state["steps"]


def _extremes(values: Tensor) -> Tensor:
    """Return the smallest and the largest value, [2]."""
    return torch.stack([values.amin(), values.amax()])

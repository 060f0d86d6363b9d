"""Fake quantization of inputs: grid and scale from the values that are seen."""

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import min_to_zero_point
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.settings import ActivationQuantization

SAMPLE = 16_384  # values kept of each calibration batch for a range rule to look at


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
            kind = "unsigned" if bool(rows.amin() >= 0) else "full"
            self.grid = IntegerGrid(self.bits, kind)
        self._fit(self.observed.unsqueeze(0) if self.follows else rows)
        self.ready = True

    def _fit(self, rows: Tensor) -> None:
        """Set scale and zero point from values [1, K] by the range rule."""
        grid = self.known_grid
        self.scale.copy_(self.rule(rows, grid)[0])
        if grid.kind == "asymmetric":
            low = rows.amin(1).clamp_max(0)
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
                self.observed.lerp_(_extremes(x.detach()).float(), 1 - self.decay)
                self._fit(self.observed.unsqueeze(0))
        return self.round_to_grid(x)


def _extremes(values: Tensor) -> Tensor:
    """Return the smallest and the largest value, [2]."""
    return torch.stack([values.amin(), values.amax()])

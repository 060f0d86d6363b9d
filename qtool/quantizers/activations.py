"""Fake quantization of inputs: grid and scale from the values that are seen."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.numerics.ranges import SMALLEST_SCALE, min_to_zero_point, start_of_zeros
from qtool.numerics.roundings import additive_noise
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.finite import refuse_bad_values
from qtool.quantizers.given import refuse_useless_scale
from qtool.quantizers.observers import Observer
from qtool.quantizers.state import QuantizerState
from qtool.settings.tensors import ActivationQuantization


class ActivationQuantizer(FakeQuantize):
    """Fake quantization of a layer's input: one scale, set from the first values it sees.

    Attributes:
        observed: float32 [2], the smallest and largest value, averaged over batches where the
            range follows them.
        offset: float32 [], what the grid's lowest level means where that is learned (LSQ+, Bhalgat
            et al., 2020, arXiv:2004.09576), else None; the zero point is round(-offset / s).
        observer: sees the values, until the range is set and, where it follows them, after that.
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
        decay, every = settings.range_value("decay", 0.0), settings.range_value("every", 1)
        self.observer = Observer(follows=self.follows, decay=decay, every=every)

    @torch.no_grad()
    def settle(self) -> None:
        """Set grid, scale and zero point from what was watched.

        Raises:
            ModelError: If values are not finite, or a given scale leaves nothing of them.
        """
        rows, weights = self.observer.take()
        refuse_bad_values(rows, f"{self.place or 'an input'}: what it was shown")
        if self.decides_grid:
            self.grid = self.grid_for(signed=bool(rows.amin() < 0))
        if self.follows:
            rows, weights = self.observed.unsqueeze(0), None
        self._fit(rows, weights)
        start = start_of_zeros(self.rule, self.known_grid, None)
        self.scale.copy_(torch.where(self.scale <= SMALLEST_SCALE, start, self.scale))
        refuse_useless_scale(self, rows)
        self.ready = True

    @torch.no_grad()
    def _fit(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Set scale and zero point from values [1, K] by the range rule; see `Observer.take`."""
        grid = self.known_grid
        weighs = weights is not None and self.settings.of_range.weighs
        found = self.rule(rows, grid, weights) if weighs else self.rule(rows, grid)
        self.scale.copy_(found[0])
        if grid.kind == "asymmetric":
            low = rows.amin(1).clamp_max(0)
            self.zero_point.copy_(min_to_zero_point(low, self.scale, grid)[0])
            if self.offset is not None:
                self.offset.copy_(low[0])

    def forward(self, x: Tensor, *, rectify: bool = False) -> Tensor:
        """Return the fake-quantized input, same shape and dtype; `rectify` quantizes its ReLU."""
        if rectify and not self._rectifies:
            x, rectify = F.relu(x), False
        if self.observer.watching:
            self.observer.watch(x, self.observed)
            return x
        if not self.ready:
            self.observer.watch(x, self.observed)
            self.settle()
        elif self.follows and self.training and self.observer.looks_now():
            self.observer.follow(x.detach(), self.observed, rectify=rectify)
            self._fit(self.observed.unsqueeze(0))
        self.place_zero_point()
        return self.round_to_grid(x, self.offset)

    @property
    def _rectifies(self) -> bool:
        """Tell whether rounding is ReLU, too: it saturates at zero, and keeps nothing below."""
        if self.observer.watching or not self.ready or self.blend is not None:
            return False
        return self.known_grid.kind == "unsigned" and self.rounding is not additive_noise

    @torch.no_grad()
    def place_zero_point(self) -> None:
        """Put the zero point where a learned offset and scale have moved to."""
        if self.offset is not None:
            placed = min_to_zero_point(self.offset, self.used_scale, self.known_grid)
            self.zero_point.copy_(placed)

    def _state(self) -> QuantizerState:
        return {**super()._state(), "steps": self.observer.steps}

    def _take_state(self, state: QuantizerState) -> None:
        super()._take_state(state)
        self.observer.steps = state["steps"]

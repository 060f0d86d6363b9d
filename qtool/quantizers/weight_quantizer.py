"""Fake quantization of weights: scales from the weight itself, learned or fitted again."""

from typing import Any

import torch
from torch import Tensor

from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.settings import WeightQuantization


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
        per_channel = settings.granularity == "per_channel"
        shape = [len(weight), *[1] * (weight.ndim - 1)] if per_channel else []
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

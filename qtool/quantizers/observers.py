"""Observers: what watches the values of an activation, and what its range rule is shown of them.

Until a range is set, an observer keeps an even sample of the values of each batch and their
extremes. A range that follows its values is then shown a moving average of the extremes, which
takes in those of every so many training steps.
"""

import torch
from torch import Tensor

SAMPLE = 16_384  # values kept of each calibration batch for a range rule to look at


class Observer:
    """Watches the values of one tensor, from batch to batch.

    The moving average itself, float32 [2], belongs to the quantizer, as checkpoints hold it.

    Attributes:
        follows: the range follows its values.
        decay, every: of the moving average: the weight of what was, and the steps between looks.
        watching: while true, values are collected and passed on as they are.
        steps: training steps so far.
        looks: whether the values of this training step are taken into the average.
        ahead: that is decided before the forward pass, not in it.
    """

    def __init__(self, *, follows: bool, decay: float, every: int) -> None:
        self.follows, self.decay, self.every = follows, decay, every
        self.watching = self.looks = self.ahead = False
        self.steps = 0
        self._samples: list[Tensor] = []

    @torch.no_grad()
    def watch(self, x: Tensor, average: Tensor) -> None:
        """Collect an even sample of the values of x, and take their extremes into the average."""
        values = x.detach().float().flatten()
        extremes = _extremes(values)
        if self.follows and self._samples:
            average.lerp_(extremes, 1 - self.decay)
        elif self.follows:
            average.copy_(extremes)
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

    def take(self) -> Tensor:
        """Return what was watched, float32 [1, K], and drop it."""
        rows = torch.cat(self._samples).unsqueeze(0)
        self.forget()
        return rows

    def begin_step(self) -> None:
        """Decide, before a training step's forward pass, whether to look at its values."""
        self.ahead = True
        self._count_step()

    def looks_now(self) -> bool:
        """Tell, in a training step's forward pass, whether to look at its values."""
        if not self.ahead:
            self._count_step()
        return self.looks

    def _count_step(self) -> None:
        self.looks = self.follows and self.steps % self.every == 0
        self.steps += 1

    @torch.no_grad()
    def follow(self, x: Tensor, average: Tensor, *, rectify: bool) -> None:
        """Take the extremes of x, or of its ReLU, into the average."""
        extremes = _extremes(x).float()
        extremes = extremes.clamp_min_(0) if rectify else extremes
        average.lerp_(extremes, 1 - self.decay**self.every)


def _extremes(values: Tensor) -> Tensor:
    """Return the smallest and the largest value, [2]."""
    return torch.stack([values.amin(), values.amax()])

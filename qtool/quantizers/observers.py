"""Observers: what watches the values of an activation, and what its range rule is shown of them.

Until a range is set, an observer keeps a sample of the values of each batch, which stands for all
of them. A range that follows its values is then shown a moving average of the extremes, which
takes in those of every so many training steps.
"""

import torch
from torch import Tensor

from qtool.quantizers.moved import in_backward
from qtool.quantizers.samples import SAMPLE, Sample


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
        self._samples: list[Sample] = []
        self._size = SAMPLE

    @torch.no_grad()
    def watch(self, x: Tensor, average: Tensor) -> None:
        """Collect a sample of the values of x, and take their extremes into the average.

        With every doubling of the batches each keeps half: memory stays bounded, and as a sample
        knows how many values it stands for, all values of all batches count alike.
        """
        sample = Sample.of(x, self._size)
        if self.follows and self._samples:
            average.lerp_(sample.extremes, 1 - self.decay)
        elif self.follows:
            average.copy_(sample.extremes)
        self._samples.append(sample)
        if sum(kept.values.numel() for kept in self._samples) > 2 * SAMPLE and self._size > 1:
            self._size //= 2
            self._samples = [kept.thinned(self._size) for kept in self._samples]

    @property
    def watched(self) -> bool:
        """Tell whether any values were collected."""
        return bool(self._samples)

    def forget(self) -> None:
        """Drop what was watched."""
        self._samples, self._size = [], SAMPLE

    def take(self) -> tuple[Tensor, Tensor | None]:
        """Return what was watched and drop it: values [1, K], and how many each stands for [K].

        The extremes of all values are among them. None where every value is there.
        """
        samples = self._samples
        self.forget()
        if all(sample.is_whole for sample in samples):
            return torch.cat([sample.values for sample in samples]).unsqueeze(0), None
        rows, weights = zip(*(sample.weighed() for sample in samples), strict=True)
        return torch.cat(rows).unsqueeze(0), torch.cat(weights)

    def begin_step(self) -> None:
        """Decide, before a training step's forward pass, whether to look at its values."""
        self.ahead = True
        self._count_step()

    def looks_now(self) -> bool:
        """Tell, in a training step's forward pass, whether to look at its values."""
        if not self.ahead:
            if in_backward():  # the values were looked at when this pass was made
                return False
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

"""Observers: what watches the values of an activation, and what its range rule is shown of them.

Until a range is set, an observer keeps a sample of the values of each batch, which stands for all
of them. A range that follows its values is then shown a moving average of the extremes, which
takes in those of every so many training steps.
"""

import torch
from torch import Tensor

from qtool.quantizers.moved import in_backward
from qtool.quantizers.samples import SAMPLE, Sample
from qtool.world.passes import EVERYTHING, Share, this_pass


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
        shared: several values have this range, so that a batch's extremes are those of all.
        share: which part of a batch a pass sees: its extremes are those of all parts.
    """

    share: Share = EVERYTHING

    def __init__(self, *, follows: bool, decay: float, every: int) -> None:
        self.follows, self.decay, self.every = follows, decay, every
        self.watching = self.looks = self.ahead = self.shared = False
        self.steps = 0
        self._samples: list[Sample] = []
        self._size = SAMPLE
        self._members: set[str] = set()  # of a shared range, that this batch has shown
        self._first = True  # that is the first batch, before which there is no average
        self._before = torch.zeros(2)  # the average before a batch
        self._union = torch.zeros(2)  # the extremes of what was seen of it

    @torch.no_grad()
    def watch(self, x: Tensor, average: Tensor, member: str = "") -> None:
        """Collect a sample of the values of x, and take their extremes into the average.

        With every doubling of the batches each keeps half: memory stays bounded, and as a sample
        knows how many values it stands for, all values of all batches count alike.
        """
        sample = Sample.of(x, self._size)
        if self.follows:
            if member in self._members or not self._samples:  # a batch begins
                self._members.clear()
                self._first = not self._samples
                self._begin_batch(average)
            self._members.add(member)
            self._take_in(sample.extremes, average, 1.0 if self._first else 1 - self.decay)
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
        self._members.clear()

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

    def begin_step(self, average: Tensor) -> None:
        """Decide, before a training step's forward pass, whether to look at its values."""
        self.ahead = True
        self._count_step()
        if self.looks and self._in_parts:
            self._begin_batch(average)

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
    def follow(
        self, x: Tensor, average: Tensor, *, rectify: bool, top: float | None = None
    ) -> None:
        """Take the extremes of x, or of its ReLU, or of its clip to 0..top, into the average."""
        extremes = _extremes(x).float()
        extremes = extremes.clamp_(min=0, max=top) if rectify else extremes
        weight = 1 - self.decay**self.every
        if self.share.processes > 1:
            extremes = this_pass().world.widest(extremes)
        if self._in_parts and self.ahead:
            self._take_in(extremes, average, weight)
        else:
            average.lerp_(extremes, weight)

    @property
    def _in_parts(self) -> bool:
        """Tell whether a batch is seen in several parts, one after the other."""
        return self.shared or self.share.passes > 1

    def _begin_batch(self, average: Tensor) -> None:
        """Keep the average from before a batch, of which nothing was seen yet."""
        if self._before.device != average.device:
            self._before, self._union = torch.zeros_like(average), torch.zeros_like(average)
        self._before.copy_(average)
        self._union[0], self._union[1] = torch.inf, -torch.inf

    def _take_in(self, extremes: Tensor, average: Tensor, weight: float) -> None:
        """Let a batch, whose extremes are now also these, count in the average by its weight."""
        least, most = torch.minimum(self._union, extremes), torch.maximum(self._union, extremes)
        self._union.copy_(torch.stack([least[0], most[1]]))
        average.copy_(torch.lerp(self._before, self._union, weight))


def _extremes(values: Tensor) -> Tensor:
    """Return the smallest and the largest value, [2]."""
    return torch.stack([values.amin(), values.amax()])

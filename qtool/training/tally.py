"""What an epoch has come to so far: the sums of its line of metrics, and how many steps they hold.

A checkpoint that is written inside an epoch holds it, so that the run goes on with the next step as
if it had never stopped.
"""

import math
import time
from typing import Any, TypedDict

import torch
from torch import Tensor

from qtool.evaluation import share_of_hits

Measures = dict[str, Any]  # keys of an EpochLine


class Counted(TypedDict):
    """What a checkpoint holds of a `Tally`; see its attributes."""

    steps: int
    images: int
    loss_sum: Tensor
    hits: Tensor
    rate: float
    line: Measures | None
    finished: bool
    seconds: float


class Tally:
    """Counts what the steps of an epoch give.

    Attributes:
        steps: taken so far.
        images: that they were on.
        loss_sum: of their losses, float32 []; sums stay on the device, as to read one waits for
            everything queued there.
        hits: how many of them were told right, int64 [].
        rate: the learning rate of the last step.
        line: what the steps came to, once all are taken; None before.
        finished: what is left to do to the model after the last step of all is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = self.images = 0
        self.loss_sum = torch.zeros((), device=device)
        self.hits = torch.zeros((), device=device, dtype=torch.int64)
        self.rate = 0.0
        self.line: Measures | None = None
        self.finished = False
        self._here, self._before = 0, 0.0  # images, and seconds, of this process and before it
        self._started = time.perf_counter()

    def resume(self) -> None:
        """Let the time of this process run from now on."""
        self._started = time.perf_counter()

    def add(self, loss: Tensor, hits: Tensor, images: int, rate: float) -> None:
        """Count a step: its loss [], the images told right [] and all, and the learning rate."""
        self.loss_sum += loss * images
        self.hits += hits
        self.images += images
        self._here += images
        self.steps += 1
        self.rate = rate

    @property
    def mean_loss(self) -> float:
        """Return the mean loss over the images; waits for the device."""
        return float(self.loss_sum) / self.images

    def accuracy(self, labels: Tensor) -> float | None:
        """Return the share of images told right, or None where `labels`, any, are no classes."""
        return share_of_hits(self.hits, self.images, labels)

    @property
    def seconds(self) -> float:
        """Return how long the epoch has taken, in whatever process."""
        return self._before + time.perf_counter() - self._started

    @property
    def images_per_second(self) -> float:
        """Return how many images a second are trained on in this process."""
        return self._here / (time.perf_counter() - self._started)

    def state(self) -> Counted:
        """Return what a checkpoint holds: numbers, text and tensors."""
        return {
            "steps": self.steps,
            "images": self.images,
            "loss_sum": self.loss_sum,
            "hits": self.hits,
            "rate": self.rate,
            "line": self.line,
            "finished": self.finished,
            "seconds": self.seconds,
        }

    @classmethod
    def of(cls, state: Counted, device: torch.device) -> "Tally":
        """Return what `state` returned, to go on with; other contents raise as Python does.

        Raises:
            ValueError: If a sum has another type or shape, or a number is not finite.
        """
        made = cls(device)
        for given, own in ((state["loss_sum"], made.loss_sum), (state["hits"], made.hits)):
            if given.dtype != own.dtype or given.shape != own.shape or not given.isfinite():
                raise ValueError("the sums of the epoch are not what they were")
        if not math.isfinite(state["rate"] + state["seconds"]):
            raise ValueError("learning rate or seconds of the epoch are not finite")
        made.steps, made.images = int(state["steps"]), int(state["images"])
        made.loss_sum.copy_(state["loss_sum"])
        made.hits.copy_(state["hits"])
        made.rate, made._before = float(state["rate"]), float(state["seconds"])
        made.line = None if state["line"] is None else dict(state["line"])
        made.finished = bool(state["finished"])
        return made

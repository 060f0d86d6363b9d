"""Who looks on while a model trains: hooks that a watcher may fill in, each doing nothing here.

To add one, write a subclass beside what it is about (`StepProfile`, `Population` and the recorder
of changes are such) and put it among the trainer's watchers in `qtool.runs.train`.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] and labels [B]
WatcherState = dict[str, Tensor]
Seen = float | None | Mapping[str, float]  # a figure, or one of each layer


class Batches(Protocol):
    """Images and labels whose order is a function of the epoch."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield images [B, C, H, W] and labels [B] of one epoch, from batch `start` on."""
        ...


class Watcher:
    """Looks on while a model trains, and changes nothing."""

    def epoch(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return what surrounds the training steps of one epoch."""
        return nullcontext()

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the epoch's batches, as they are to be taken."""
        return batches

    def before_step(self, step: int) -> None:
        """See the weights after `step` training steps."""

    def measures(self) -> Mapping[str, Seen]:
        """Return what the epoch's line of metrics should hold, after its last step."""
        return {}

    def validated(self, logits: Tensor, labels: Tensor) -> None:
        """See the logits [B, classes] and the labels [B] of a batch of images that judge an epoch.

        They are the validation set's or, where training images are held out, those but after the
        last epoch.
        """

    def end_epoch(self, epoch: int, step: int) -> None:
        """See an epoch end, before its checkpoint is written."""

    def state(self) -> WatcherState:
        """Return what was counted of the epoch in progress, for a checkpoint inside it."""
        return {}

    def restore(self, state: WatcherState) -> None:
        """Take back what `state` returned."""

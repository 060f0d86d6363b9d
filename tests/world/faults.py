"""What goes wrong in one process of several, planted there by tests."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qtool.data.tensor_batches import TensorBatches
from qtool.errors import DataError
from qtool.training import step
from qtool.training.losses import Loss

AT = 7  # the call that fails


def _at(number: int) -> list[bool]:
    """Return, for each call, whether it fails."""
    return [False] * (number - 1) + [True]


def a_label_that_is_no_class() -> None:
    """Let a batch hold a label of 100."""
    whole, calls = step.loss_of, _at(AT)

    def planted(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
        if calls and calls.pop(0):
            labels = torch.full_like(labels, 100)
        return whole(loss, logits, labels)

    step.loss_of = planted


def _from_a_batch_on(fails: Callable[[Tensor], Tensor]) -> None:
    """Let something happen to the images of each batch from one on."""
    whole = TensorBatches.batches

    def planted(self: TensorBatches, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for index, (images, labels) in enumerate(whole(self, epoch, start)):
            yield (images if index < AT else fails(images)), labels

    TensorBatches.batches = planted


def an_image_of_nans() -> None:
    """Let images be no numbers."""
    _from_a_batch_on(lambda images: torch.full_like(images, torch.nan))


def a_photograph_that_is_damaged() -> None:
    """Let the next batch of an epoch be one that cannot be read."""

    def fails(images: Tensor) -> Tensor:
        raise DataError("photographs/7.jpg: damaged")

    _from_a_batch_on(fails)


def a_mistake_of_qtools() -> None:
    """Let the pass back end with an error that is nobody's message."""
    whole, calls = step.TrainingStep._backward, _at(AT)

    def planted(self: step.TrainingStep, total: Tensor) -> None:
        if calls and calls.pop(0):
            raise LookupError("planted")
        whole(self, total)

    step.TrainingStep._backward = planted

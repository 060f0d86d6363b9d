"""Accuracy and loss of any callable on batches of images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """How a model does on a data set.

    Attributes:
        accuracy: share of images whose largest logit is at the label, 0..1; None where the labels
            are no classes but numbers to be met.
        loss: mean over images.
        images: how many there were.
    """

    accuracy: float | None
    loss: float
    images: int


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many logits are largest at their label, int64 []; 0 where labels are numbers."""
    if labels.is_floating_point():
        return torch.zeros((), dtype=torch.int64, device=labels.device)
    return (logits.argmax(1) == labels).sum()


def share_of_hits(hits: int | Tensor, images: int, labels: Tensor) -> float | None:
    """Return the accuracy 0..1, or None where `labels`, any of them, are no classes."""
    return None if labels.is_floating_point() else int(hits) / images


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Score:
    """Return accuracy and mean loss of `model` (a module should be in evaluation mode)."""
    images, total_loss, hits, labels = 0, 0.0, 0, torch.empty(0)
    for inputs, labels in batches:
        logits = model(inputs).float()
        total_loss += float(loss(logits, labels)) * len(labels)
        hits += int(count_hits(logits, labels))
        images += len(labels)
    return Score(share_of_hits(hits, images, labels), total_loss / images, images)


@torch.no_grad()
def logits_of(
    model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the logits [N, classes], float32, and labels [N] of all batches, on the CPU."""
    pairs = [(model(inputs).float().cpu(), labels.cpu()) for inputs, labels in batches]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])

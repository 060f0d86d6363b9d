"""Accuracy and loss of any callable on batches of images, and whether two models say the same.

The rule of agreement is one, for the proof of an integer model and for the check of an exported
file: `agreement` (logits) or `agreement_of_values` (anything else) gives the figures, `judge` says
what they mean.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qtool.world.world import ALONE, World

SURE = 0.1  # of the standard deviation: a smaller distance may be decided by a last bit
NEEDED = 0.98  # of the images that are sure
SAME = 1e-5  # of the largest value: what float32 makes of sums of some thousand products


@dataclass(frozen=True)
class Score:
    """How a model does on a data set.

    Attributes:
        accuracy: share of images that are told right, 0..1: whose largest logit is at the label or,
            where they may have several classes, whose every class is told by a logit above 0, and
            no other; None where the labels are no classes but numbers to be met.
        loss: mean over images.
        images: how many there were.
        top5: share of images whose label is among the five largest logits; None if not asked for.
        f1: of images that may have several classes, else None: 2 t / (s + w), where w classes of
            all images are there, s are said to be, and t of these rightly; 1 where none are either.
    """

    accuracy: float | None
    loss: float
    images: int
    top5: float | None = None
    f1: float | None = None


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many images are told right, int64 [].

    Args:
        logits: [B, classes].
        labels: int64 [B], classes: right is where the largest logit is. Float [B, classes], 1 for
            each class that an image has, else 0: right is where just those logits are above 0.
            Float [B], numbers: none is right.
    """
    if are_numbers(labels):
        return torch.zeros((), dtype=torch.int64, device=labels.device)
    if labels.is_floating_point():
        return ((logits > 0) == (labels > 0.5)).all(1).sum()
    return (logits.argmax(1) == labels).sum()


def _said_and_there(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return how many classes, [B, classes], are there and said to be, and how often either."""
    said, there = logits > 0, labels > 0.5
    return int((said & there).sum()), int(said.sum()) + int(there.sum())


def are_numbers(labels: Tensor) -> bool:
    """Tell whether labels are numbers to be met, float [B], and no classes."""
    return labels.is_floating_point() and labels.ndim == 1


def count_in_top(logits: Tensor, labels: Tensor, count: int = 5) -> Tensor:
    """Return of how many images the label, int64 [B], is among the largest logits, int64 []."""
    largest = logits.topk(min(count, logits.shape[1]), dim=1).indices
    return (largest == labels.unsqueeze(1)).any(1).sum()


def share_of_hits(hits: int | Tensor, images: int, labels: Tensor) -> float | None:
    """Return the accuracy 0..1, or None where `labels`, any of them, are no classes."""
    return None if are_numbers(labels) else int(hits) / images


def accuracy_of(logits: Tensor, labels: Tensor) -> float | None:
    """Return the share of logits [N, classes] that tell their labels right, or None."""
    return share_of_hits(count_hits(logits, labels), len(labels), labels)


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    world: World = ALONE,
    *,
    top5: bool = False,
) -> Score:
    """Return accuracy and mean loss of `model` (a module should be in evaluation mode).

    Of several processes each gives the batches that it has, of which some may be empty.

    Raises:
        ValueError: If there is no batch.
    """
    images, total_loss, hits, near, right, told = 0, 0.0, 0, 0, 0, 0
    labels = torch.empty(0)
    for inputs, labels in world.in_step(batches):
        if not len(labels):
            continue
        logits = model(inputs).float()
        total_loss += float(loss(logits, labels)) * len(labels)
        hits += int(count_hits(logits, labels))
        near += int(count_in_top(logits, labels)) if top5 else 0
        if labels.ndim > 1:
            both, either = _said_and_there(logits, labels)
            right, told = right + both, told + either
        images += len(labels)
    total_loss, *counts = world.sums([total_loss, hits, images, near, right, told])
    hits, images, near, right, told = map(int, counts)
    if not images:
        raise ValueError("there is no batch to judge by; give one at least")
    among = near / images if top5 else None
    f1 = None
    if labels.ndim > 1:
        f1 = 2 * right / told if told else 1.0
    return Score(share_of_hits(hits, images, labels), total_loss / images, images, among, f1)


@torch.no_grad()
def logits_of(
    model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the logits [N, classes], float32, and labels [N] of all batches, on the CPU."""
    pairs = [(model(inputs).float().cpu(), labels.cpu()) for inputs, labels in batches]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def agreement(expected: Tensor, given: Tensor) -> dict[str, float]:
    """Return how far two sets of logits [N, classes] agree.

    `clear` images are those whose two best expected logits lie at least a tenth of the logits'
    standard deviation apart: on the others, the last bit may decide.
    """
    figures = agreement_of_values([(expected, given)])
    equal = expected.argmax(1) == given.argmax(1)
    best = expected.double().topk(min(2, expected.shape[1])).values
    # where all logits are one value, none is clear
    clear = (best[:, 0] - best[:, -1] >= sure_distance(figures)) & (best[:, 0] > best[:, -1])
    return {
        "images": figures["images"],
        "sigma": figures["sigma"],
        "top1_agreement": float(equal.double().mean()),
        "clear_share": float(clear.double().mean()),
        "clear_agreement": float(equal[clear].double().mean()) if bool(clear.any()) else 1.0,
        "max_abs_difference": figures["max_abs_difference"],
        "median_abs_difference": figures["median_abs_difference"],
    }


def agreement_of_values(batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return how far values agree that are no logits: of any type and shape, a row for each image.

    Args:
        batches: pairs of what was expected and what was given, each [N, ...] of equal shapes.

    Returns:
        images: rows in all; sigma: standard deviation of all expected values; the largest and the
        median difference, of the largest in each row.
    """
    pairs = [(_rows(expected), _rows(given)) for expected, given in batches]
    values = torch.cat([expected.flatten() for expected, _ in pairs])
    differences = torch.cat([(a - b).abs().amax(1) for a, b in pairs])
    return {
        "images": len(differences),
        "sigma": float(values.std()) if len(values) > 1 else 0.0,
        "max_abs_difference": float(differences.max()),
        "median_abs_difference": float(differences.median()),
    }


def _rows(values: Tensor) -> Tensor:
    """Return values [N, ...] or [] as float64 [N, K]."""
    return values.double().reshape(len(values) if values.ndim else 1, -1)


def sure_distance(figures: Mapping[str, float]) -> float:
    """Return a tenth of sigma: a smaller distance of logits says nothing for sure."""
    return SURE * figures["sigma"]


def is_constant(figures: Mapping[str, float]) -> bool:
    """Tell whether all expected values are one, so that agreement on them proves little."""
    return figures["sigma"] == 0


def judge(figures: Mapping[str, float], given: Tensor, *, room: float = 0.0) -> str:
    """Return why a model disagrees with the one it was made of, or "" where it agrees.

    Logits agree where the top class does on at least 0.98 of the images that are clear; where
    fewer than half are clear, and for values that are no logits, where the median difference is at
    most a tenth of sigma; a constant only where all values are equal but for float32's last digits.

    Args:
        figures: from `agreement` or `agreement_of_values`.
        given: what the model gave.
        room: what values may differ by where all that was expected is one constant.
    """
    if not bool(torch.isfinite(given).all()) or not math.isfinite(figures["sigma"]):
        return "an output is not finite"
    if is_constant(figures):
        room += SAME * float(given.double().abs().max())
        if figures["max_abs_difference"] > room:
            return (
                f"all outputs should be one constant, and differ from it by up to "
                f"{figures['max_abs_difference']:.3g}"
            )
        return ""
    if figures.get("clear_agreement", 1.0) < NEEDED:
        return (
            f"the top class agrees on {figures['clear_agreement']:.4f} of the images whose two "
            f"best logits lie apart; at least {NEEDED} is needed"
        )
    tenth = sure_distance(figures)
    if figures.get("clear_share", 0.0) < 0.5 and figures["median_abs_difference"] > tenth:
        what = "logits" if "clear_share" in figures else "outputs"
        return (
            f"{what} differ by {figures['median_abs_difference']:.3g} in the median, more than a "
            f"tenth of their standard deviation ({tenth:.3g})"
        )
    return ""

"""Losses: what training makes small.

Each takes logits [B, classes] and labels [B], int64 classes, and returns a mean over the batch, [].
What other labels it takes stands in its decorator. To add one, write a function here and decorate
it: its name is its name in recipes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from qtool.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LossFacts:
    """What the rest of qtool must know of a loss."""

    takes_shares: bool = False
    """Labels may be shares of the classes, float [B, classes], as mixup makes them."""

    weighs: bool = False
    """It takes weights of the classes, float [classes], as its third argument: an image counts by
    that of its class, or by those of its shares, and the mean is still over images."""

    several: bool = False
    """Float labels [B, classes] are 1 for each class that an image has, else 0."""


LOSSES = Registry[Callable[..., Tensor]]("loss").with_facts(LossFacts)


def _weighed(each: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of losses [B], each times the weight of its image."""
    own = labels @ weights if labels.is_floating_point() else weights[labels]
    return (own * each).mean()


@LOSSES.add(takes_shares=True, weighs=True)
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> Tensor:
    """Return the mean of -log softmax(logits)[label].

    Labels that are shares t of the classes give -sum t log softmax(logits). Smoothing by e takes
    (1 - e) t + e / classes in their place.
    """
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return _weighed(each, labels, weights)


@LOSSES.add(weighs=True)
def multiclass_hinge(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    margin: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """Return the mean of max(0, margin - logits[label] + the largest other logit).

    Reference: Crammer and Singer, 2001; used by Long et al., 2020, arXiv:2011.11256.
    """
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    each = (margin - own + others.amax(1)).clamp_min(0)
    return each.mean() if weights is None else _weighed(each, labels, weights)


@LOSSES.add(several=True)
def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over images and classes of -t log p - (1 - t) log(1 - p), p = sigmoid(logit).

    For images of several classes, or of none: t is 1 for each class that an image has, else 0. An
    image counts as right where every class is told right, by a logit above 0 or not above.
    """
    if not labels.is_floating_point():
        labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels)


@LOSSES.add(takes_shares=True)
def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of (logits - one_hot(labels))^2 / 2, summed over classes.

    Labels that are numbers, float [B], are themselves what the one logit [B, 1] should be.
    """
    if labels.is_floating_point():
        target = labels.reshape(len(labels), -1)
    else:
        target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return (logits - target).square().sum(1).mean() / 2

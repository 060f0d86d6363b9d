"""Losses: what training makes small.

Each takes logits [B, classes] and labels [B], int64 classes, and returns a mean over the batch, [].
To add one, write a function here and decorate it: its name is its name in recipes.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from qtool.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Registry[Callable[..., Tensor]] = Registry("loss")


@LOSSES.add
def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
) -> Tensor:
    """Return the mean of -log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@LOSSES.add
def multiclass_hinge(
    logits: Tensor, labels: Tensor, *, margin: Annotated[float, Field(gt=0)] = 1.0
) -> Tensor:
    """Return the mean of max(0, margin - logits[label] + the largest other logit).

    Reference: Crammer and Singer, 2001; used by Long et al., 2020, arXiv:2011.11256.
    """
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return (margin - own + others.amax(1)).clamp_min(0).mean()


@LOSSES.add
def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of (logits - one_hot(labels))^2 / 2, summed over classes.

    Labels that are numbers, float [B], are themselves what the one logit [B, 1] should be.
    """
    if labels.is_floating_point():
        target = labels.unsqueeze(1)
    else:
        target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return (logits - target).square().sum(1).mean() / 2

"""How much an image counts in the loss, by its class: given, or so that classes count alike."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qtool.errors import DataError
from qtool.evaluation import are_numbers
from qtool.graph.inputs import where_float64

KEY = "training.class_weights"


def class_weights(
    given: Literal["balanced"] | Sequence[float], labels: Tensor, classes: int
) -> Tensor:
    """Return the weight of each class, float32 [classes].

    Balanced is n / (k n_c), of n images, k classes that occur and n_c images of class c, as
    scikit-learn has it: their mean over images is 1. A class that has no image counts 1.

    Args:
        given: numbers, or how they are found.
        labels: of the images that are trained on, [n].
        classes: how many there are.

    Raises:
        DataError: If there are not as many numbers as classes, or labels are no classes.
    """
    if given != "balanced":
        if len(given) != classes:
            raise DataError(f"{KEY}: {len(given)} numbers, and the data have {classes} classes")
        return torch.tensor([float(number) for number in given])
    if are_numbers(labels) or labels.ndim > 1:
        raise DataError(f"{KEY}: balanced counts images of classes, and labels are none; give none")
    counts = where_float64(torch.bincount(labels, minlength=classes)).double()
    wanted = len(labels) / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, wanted, 1.0).float()

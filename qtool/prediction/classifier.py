"""What tells pictures apart, wherever it runs; this opens without torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qtool.errors import InputError
from qtool.images.preprocess import Preprocess
from qtool.images.usage import Usage

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Classifier:
    """A network that tells classes of pictures apart.

    Attributes:
        source: what it was opened from.
        usage: its classes, and how pictures are prepared.
        prepare: a decoded picture -> what the network takes of it.
        logits: a stack of those, [B, ...] -> [B, classes].
        batch: how many it takes at once; None for any number.
    """

    source: str
    usage: Usage
    prepare: Callable[[Image.Image], Array]
    logits: Callable[[Array], Array]
    batch: int | None = None


def rule_of(usage: Usage, source: str, advice: str) -> Preprocess:
    """Return how pictures are prepared for a network.

    Args:
        usage: of the network.
        source: that says it, for messages.
        advice: what to do where it does not.

    Raises:
        InputError: If nobody says it: to guess it would be to classify wrongly in silence.
    """
    if usage.preprocess is None:
        raise InputError(f"{source}: does not say how images are prepared for it; {advice}")
    return usage.preprocess


def name_of(usage: Usage, index: int) -> str:
    """Return what a class is called; its number where it has no name."""
    return usage.classes[index] if usage.classes else str(index)

"""An integer model as a classifier, run by torch on the CPU."""

import torch
from torch import Tensor, nn

from qtool.errors import InputError
from qtool.images.usage import Usage
from qtool.prediction.classifier import Array, Classifier, rule_of

ADVICE = "its data are no pictures, or convert the run again where they are"


def classifier_of(integer: nn.Module, usage: Usage, source: str) -> Classifier:
    """Return what an integer model computes.

    Raises:
        InputError: If nobody says how pictures are prepared for it, or what its classes are.
    """
    rule = rule_of(usage, source, ADVICE)
    if not usage.classes:
        raise InputError(f"{source}: tells no classes apart; its outputs are numbers")

    @torch.no_grad()
    def logits(batch: Array) -> Array:
        found = integer(torch.from_numpy(batch))
        if not isinstance(found, Tensor) or found.shape != (len(batch), len(usage.classes)):
            raise InputError(f"{source}: gives no row of {len(usage.classes)} logits for an image")
        return found.numpy()

    return Classifier(source, usage, rule.prepared, logits)

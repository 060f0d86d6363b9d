"""The method that is taken by default: the best of what costs seconds."""

import torch

from qtool.post_training.begin import choose_activations
from qtool.post_training.methods import METHODS, Calibrated
from qtool.reports.improvements import Applied


@METHODS.add
@torch.no_grad()
def default(given: Calibrated) -> list[Applied]:
    """Choose ranges by outputs, round with compensation, correct biases; in order, in one pass."""
    return choose_activations(given) + given.in_order.go()

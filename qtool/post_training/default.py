"""The method that is taken by default: the best of what costs seconds."""

import torch

from qtool.post_training.begin import choose_activations
from qtool.post_training.in_order import InOrder
from qtool.post_training.methods import METHODS, Calibrated
from qtool.post_training.walk import in_one
from qtool.reports.improvements import Applied


@METHODS.add
@torch.no_grad()
def default(given: Calibrated) -> list[Applied]:
    """Choose ranges by outputs, round with compensation, correct biases; in order, in one pass."""
    done = choose_activations(given)
    avoids = given.saturation == "avoid"
    layers = InOrder.of(given.model, in_one(given.batches), avoids=avoids)
    return done + layers.go()

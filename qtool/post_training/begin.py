"""What every method begins with: ranges of activations that are not said."""

import torch

from qtool.post_training.activation_ranges import choose_activation_ranges
from qtool.post_training.methods import Calibrated
from qtool.post_training.walk import ELEMENTS, in_one
from qtool.reports.improvements import Applied

A_QUARTER = ELEMENTS // 4  # of one pass: each reader of a value tries every scale


@torch.no_grad()
def choose_activations(given: Calibrated) -> list[Applied]:
    """Choose the ranges of activations by what their readers give, in place."""
    return choose_activation_ranges(given.model, in_one(given.batches, A_QUARTER))

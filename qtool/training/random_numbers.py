"""Random numbers of processes that train together: each has its own, at every step.

They follow from seed, step and process, so that no checkpoint has to hold the state of every
process's generator.
"""

import torch

from qtool.data.batches import seeded_generator
from qtool.training.watcher import Watcher

APART = 0x51  # so that they share nothing with the order of the data


class OwnRandomNumbers(Watcher):
    """Seeds torch's generators before each step."""

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank

    def before_step(self, step: int) -> None:
        """Begin the numbers of a step."""
        torch.manual_seed(seeded_generator(APART, self._seed, self._rank, step).initial_seed())

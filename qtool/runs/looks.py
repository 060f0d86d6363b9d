"""Who looks on while a run is trained."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Looks:
    """Who looks on.

    Attributes:
        profile: where the time of a step goes is measured.
        records: every flip of a weight's code is kept.
        explains: the coarse gradient and activations are looked at after each epoch.
        at_end: is shown the network once it is trained.
        begins: is called once the folder has its recipe.
    """

    profile: bool
    records: bool
    explains: bool
    at_end: Callable[[nn.Module], None] | None
    begins: Callable[[], None] | None

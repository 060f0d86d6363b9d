"""The interval of a weight's sizes that is learned with it (QIL)."""

import torch
from torch import Tensor, nn

from qtool.numerics.interval import by_interval
from qtool.numerics.scales import SMALLEST_SCALE

NARROWEST = 0.01  # the distance of an interval's ends from its center, as a share of max|w|


class Interval(nn.Module):
    """Center and distance of the interval, float32 [] each; see `by_interval`."""

    def __init__(self, gamma: float, high: int) -> None:
        super().__init__()
        self.gamma, self.high = gamma, high
        self.center = nn.Parameter(torch.tensor(0.5))
        self.distance = nn.Parameter(torch.tensor(0.5))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Begin with all sizes of a weight, [C, ...]: nothing is pruned, nothing clipped."""
        half = rows.abs().amax().clamp(min=SMALLEST_SCALE) / 2
        self.center.copy_(half)
        self.distance.copy_(half)

    @torch.no_grad()
    def keep_within(self, rows: Tensor) -> None:
        """Bring both back to sizes that the weight has, should a step have left them."""
        largest = rows.abs().amax().clamp(min=SMALLEST_SCALE)
        self.center.copy_(self.center.clamp(min=0.0).minimum(largest))
        self.distance.copy_(self.distance.maximum(NARROWEST * largest).minimum(largest))

    def forward(self, rows: Tensor, *, trains: bool) -> Tensor:
        """Return what rounding sees of the rows; gradients of the interval are scaled as LSQ's."""
        factor = (rows.numel() * self.high) ** -0.5
        center, distance = (
            _slowed(p, factor) if trains else p.detach() for p in (self.center, self.distance)
        )
        return by_interval(rows, center, distance, self.gamma)


def _slowed(parameter: Tensor, factor: float) -> Tensor:
    """Return a parameter whose gradient is smaller by a factor."""
    return parameter * factor + (parameter * (1 - factor)).detach()

"""The place of a weight in an interval of sizes, as QIL rounds it."""

import torch
from torch import Tensor


def by_interval(w: Tensor, center: Tensor, distance: Tensor, gamma: float = 1.0) -> Tensor:
    """Return what rounding sees of weights, -1..1, of their shape.

        sign(w) clip((|w| - c + d) / (2 d), 0, 1)^gamma

    Args:
        w: weights.
        center: c, of the interval of |w|, [].
        distance: d, from the center to either end, above 0, [].
        gamma: bends the way from end to end.

    Reference: Jung et al., 2019, arXiv:1808.05779, where it is (alpha |w| + beta)^gamma with
    alpha = 1 / (2 d) and beta = 1/2 - c / (2 d).
    """
    place = ((w.abs() - center + distance) / (2 * distance)).clamp(0, 1)
    if gamma != 1.0:
        # the slope of a power below 1 has no limit at 0, where there is nothing to follow
        place = torch.where(place > 0, place.clamp(min=torch.finfo(place.dtype).tiny) ** gamma, 0.0)
    return torch.sign(w) * place

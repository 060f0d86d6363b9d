"""Weight scales by what the layer gives: the scale of the smallest error of the output.

    s = argmin_k e' H e,    e = w - w_hat(s_k),    s_k = share_k * absmax's scale

for each row w of the weight (or all of them together, where they share a scale), with H the second
moments of what a row is multiplied by on calibration images, of which e' H e is the mean squared
error of the output. The error of the weight alone, which the range `mse` makes small, takes H for
the identity. But what saturated weights lack all points away from zero, and the inputs behind a
ReLU are positive and go up and down together: it adds up in the output, where the errors of
rounding, of either sign, cancel. That is why absmax beats mse there, and neither is the best.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.numerics.ranges import RANGES, absmax
from qtool.quantizers.weights import WeightQuantizer

Errors = Callable[[Tensor], Tensor]
COARSE, FINE = 20, 5  # candidates: shares of absmax's scale, then parts of a share around the best
FEWEST_OF_MANY = 0.5  # from 6 bits on a smaller share only saturates: is not looked at


def may_choose(quantizer: WeightQuantizer) -> bool:
    """Tell whether a recipe leaves the scales open: its range is not said."""
    return RANGES.facts(quantizer.settings.range.name).open


def output_errors(rows: Tensor, scales: Tensor, grid: IntegerGrid, moments: Tensor) -> Tensor:
    """Return the mean squared error of what each row gives, [C].

    Args:
        rows: of a weight, [C, K]; the first C / groups belong to the first group.
        scales: of the grid, [C].
        grid: that they are rounded to.
        moments: of what the rows of each group are multiplied by, [groups, K, K].
    """
    columns = scales.unsqueeze(1)
    wrong = rows - dequantize(quantize(rows, columns, 0, grid), columns, 0, grid)
    wrong = wrong.unflatten(0, (len(moments), -1))
    return ((wrong @ moments) * wrong).sum(-1).flatten()


@torch.no_grad()
def best_scales(quantizer: WeightQuantizer, rows: Tensor, moments: Tensor) -> Tensor:
    """Return the scales of the smallest output error, shaped as the quantizer's.

    Args:
        quantizer: of a weight; its own scales are among those that are tried.
        rows: of the weight, [C, K].
        moments: see `output_errors`.
    """
    grid, shared = quantizer.known_grid, quantizer.scale.ndim == 0
    largest = absmax(rows.reshape(quantizer.scale.numel(), -1), grid)

    def errors(scale: Tensor) -> Tensor:
        found = output_errors(rows, scale.expand(len(rows)), grid, moments)
        return found.sum().unsqueeze(0) if shared else found

    best = quantizer.used_scale.reshape(-1).clone()
    least = errors(best)
    first = round(COARSE * FEWEST_OF_MANY) if grid.bits > 5 else 1
    for step in range(first, COARSE + 1):
        best, least = _better(largest * (step / COARSE), best, least, errors)
    around = best
    for step in range(1 - FINE, FINE):
        scale = around + largest * (step / FINE / COARSE)
        scale = torch.maximum(scale, largest / COARSE / FINE)
        best, least = _better(scale, best, least, errors)
    return best.reshape(quantizer.scale.shape)


def _better(scale: Tensor, best: Tensor, least: Tensor, errors: Errors) -> tuple[Tensor, Tensor]:
    """Return the better of two scales for each row, and its error."""
    error = errors(scale)
    return torch.where(error < least, scale, best), torch.minimum(error, least)

"""Learned scales of weights are kept where the weights are, should a step have left them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.reach import reach, within
from qtool.quantizers.oscillation import ATEN


def keep_within_reach(learned: Iterable[tuple[Tensor, IntegerGrid, Tensor]]) -> None:
    """Bring learned scales back to where their weights are.

    The scales of all layers go together: they are few numbers in many tensors.

    Args:
        learned: scales, their grid, and the rows [C, ...] of the weight that has them.
    """
    scales, above, below, lowest, highest = [], [], [], [], []
    for scale, grid, given in learned:
        low, high = reach(grid)
        scales.append(scale.detach().view(-1))
        rows = _rows_in_memory(given, len(scales[-1]))
        above.append(rows.amax(1))  # without a copy of the weight, as |w| would be
        below.append(rows.amin(1))
        lowest.append(low)
        highest.append(high)
    if not scales:
        return
    lengths = [len(scale) for scale in scales]
    # max|w| of each row that shares a scale
    largest = torch.maximum(torch.cat(above), torch.cat(below).neg_()).float().split(lengths)
    low = torch.cat(ATEN._foreach_mul.ScalarList(largest, lowest))
    high = torch.cat(ATEN._foreach_mul.ScalarList(largest, highest))
    kept = within(torch.cat(scales), low, high)
    ATEN._foreach_copy_.default(scales, list(kept.split(lengths)))


def _rows_in_memory(weight: Tensor, rows: int) -> Tensor:
    """Return the elements that share each scale, [rows, K], in the order of their memory."""
    values = weight.detach()
    if not values.is_contiguous() and values.ndim == 4:
        values = values.permute(0, 2, 3, 1)  # no copy where the channels are innermost
    return values.reshape(rows, -1)

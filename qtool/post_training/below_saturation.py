"""Codes of which no two neighbours saturate, as close as may be to what a layer gives.

Where two neighbouring codes are too large for a sum of int16 (`qtool.numerics.saturation`), both
are held back, and the other codes of the channel make up for it by coordinate descent. A channel
with many such pairs does better with a larger scale: each is tried with a few, up to twice its
own, with which hardly a pair is too large.
"""

import torch
from torch import Tensor

from qtool.numerics.on_grid import OnGrid
from qtool.numerics.saturation import Neighbours
from qtool.post_training.coordinates import descended
from qtool.post_training.gptq import errors_of
from qtool.post_training.held_codes import codes_of, hold_codes, quantizer_of
from qtool.post_training.weight_scales import may_choose
from qtool.quantizers.layers import QuantLayer
from qtool.quantizers.saturation import largest_input, saturating_rows, take_fewer_steps

LARGER = (1.0, 1.25, 1.5, 2.0)  # scales that are tried, as shares of a channel's own


@torch.no_grad()
def hold_below_saturation(layer: QuantLayer, wanted: Tensor, hessian: Tensor) -> None:
    """Give the channels of a layer that could saturate other codes and scales, in place.

    Where all channels share a scale, codes are two apart, or there are no second moments, they are
    rounded to fewer steps instead.

    Args:
        layer: of a prepared model, its scales set.
        wanted: rows that those of its weight should be, float32 [C, in / groups, ...].
        hessian: float64 [groups, K, K], second moments of what the rows are multiplied by.
    """
    quantizer, largest = quantizer_of(layer), largest_input(layer)
    grid, scale = quantizer.known_grid, quantizer.on_grid.scale
    alone = scale.ndim == 0 or grid.code_step != 1
    if alone or largest is None or not bool((hessian.diagonal(dim1=1, dim2=2).amax(1) > 0).all()):
        take_fewer_steps(layer)
        return
    rows, codes = saturating_rows(layer), codes_of(layer)
    neighbours = Neighbours.of(codes.shape, largest)
    best_codes, best_scale = codes, scale
    least = torch.full((len(codes),), torch.inf, dtype=torch.float64, device=codes.device)
    for share in LARGER:
        on_grid = OnGrid(grid, scale * share, 0, quantizer.on_grid.rounding)
        start = neighbours.parted(on_grid.codes(wanted).flatten(1)).reshape(codes.shape)
        found, scales = descended(
            wanted, on_grid, start, hessian, scales=may_choose(quantizer), neighbours=neighbours
        )
        wrong = (wanted - found * scales).reshape(len(hessian), -1, hessian.shape[1])
        error = errors_of(wrong, hessian).flatten()
        better = rows & (error < least)
        least = torch.where(better, error, least)
        columns = better.reshape(-1, *[1] * (codes.ndim - 1))
        best_codes = torch.where(columns, found, best_codes)
        best_scale = torch.where(columns, scales, best_scale)
    quantizer.scale.copy_(best_scale)
    hold_codes(layer, best_codes)
    quantizer.rounded_anew = int(rows.sum())

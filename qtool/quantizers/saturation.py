"""Fewer steps for weights that could saturate without VNNI, before training and after it.

What can saturate is told in `qtool.numerics.saturation`. A weight in steps of one bit fewer keeps
its width in files: its codes lie within +-63 of the +-127 that 8 bits hold.
"""

import torch
from torch import Tensor, nn

from qtool.numerics.on_grid import OnGrid
from qtool.numerics.saturation import (
    can_saturate,
    largest_byte,
    widths_can_saturate,
    with_fewer_steps,
)
from qtool.quantizers.layers import QuantLayer, hold_weight, quant_layers
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import ActivationQuantization


def largest_input(layer: QuantLayer) -> int | None:
    """Return the largest byte that a layer's input can be in a file; None for a float input.

    As long as values have not decided an `auto` grid, the grid with the largest byte counts.
    """
    quantizer = layer.quantizer_of_input
    if quantizer is None:
        return None
    settings, known = quantizer.settings, quantizer.grid
    assert isinstance(settings, ActivationQuantization)
    return max(map(largest_byte, settings.grids() if known is None else [known]))


def may_saturate(layer: QuantLayer) -> bool:
    """Tell by the widths of weight and input whether a layer could saturate."""
    quantizer, largest = layer.weight_quantizer, largest_input(layer)
    if quantizer is None or largest is None:
        return False
    shape = layer.layout.rows(layer.weight).shape
    return widths_can_saturate(quantizer.known_grid, largest, shape, _groups(layer))


def avoid_saturation(model: nn.Module) -> None:
    """Give a model's weights fewer steps where their settings say so and widths could saturate.

    To be called before the first values are seen, so that the same settings always decide alike.
    """
    for layer in quant_layers(model).values():
        quantizer = layer.weight_quantizer
        if quantizer is None or not quantizer.avoids_saturation:
            continue
        if may_saturate(layer):
            quantizer.avoid_saturation(layer.whole_weight)


@torch.no_grad()
def take_fewer_steps(model: nn.Module) -> None:
    """Round the channels whose codes can saturate anew, in steps of one bit fewer, in place.

    The largest level of such a channel stays; from then on its weights lie on their levels. How
    many they are stays with the quantizer, as `rounded_anew`.

    Args:
        model: from `prepare`, in evaluation, all of its ranges set; no longer to be trained.
    """
    for layer in quant_layers(model).values():
        if layer.weight_quantizer is not None and (rows := saturating_rows(layer)).any():
            _round_anew(layer, layer.weight_quantizer, rows)


def could_saturate(model: nn.Module) -> bool:
    """Tell whether a layer could saturate by the codes that it has."""
    return any(bool(saturating_rows(layer).any()) for layer in quant_layers(model).values())


@torch.no_grad()
def saturating_rows(layer: QuantLayer) -> Tensor:
    """Tell which channels of a layer could saturate by the codes that they have, bool [C]."""
    quantizer, largest = layer.weight_quantizer, largest_input(layer)
    if quantizer is None or largest is None:
        return torch.zeros(len(layer.layout.rows(layer.weight)), dtype=torch.bool)
    weight = quantizer.rows_to_round(layer.whole_weight)
    return can_saturate(quantizer.on_grid.codes(weight), largest, groups=_groups(layer))


def _round_anew(layer: QuantLayer, quantizer: WeightQuantizer, rows: Tensor) -> None:
    """Put some channels of a weight onto the levels of fewer steps.

    Args:
        layer: whose weight it is.
        quantizer: of the weight.
        rows: which of the channels, bool [C].
    """
    weight = quantizer.rows_to_round(layer.whole_weight)
    columns = [len(weight), *[1] * (weight.ndim - 1)]
    stored, fewer = quantizer.on_grid, with_fewer_steps(quantizer.stored_grid)
    levels = stored.values(stored.codes(weight)).abs().flatten(1).amax(1).reshape(columns)
    step = stored.step.expand(columns)
    rows = rows.reshape(columns)
    coarse = OnGrid.by_step(fewer, fewer.bound_to_scale(levels).where(rows, step))
    made = torch.where(rows, coarse.values(coarse.codes(weight)), weight)
    # of its own: another layer, with other scales, may have shared the weight
    made = layer.layout.weight(made).contiguous()
    hold_weight(layer, made.to(layer.weight.dtype))
    quantizer.scale.data = coarse.step.where(rows, step).clone()
    quantizer.squashes = quantizer.tracker.freezes = False  # both are in the weight by now
    quantizer.rounded_anew = int(rows.sum())


def _groups(layer: QuantLayer) -> int:
    return layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1

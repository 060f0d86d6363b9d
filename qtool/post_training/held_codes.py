"""Codes that a method has chosen, held in the fake-quantized model as the weights themselves.

A latent weight is moved onto the level of its code, so that rounding to nearest gives that code:
conversion, its proof, the integer file and export then keep it without knowing of any method.
"""

import torch
from torch import Tensor

from qtool.quantizers.layers import QuantLayer, hold_weight
from qtool.quantizers.weights import WeightQuantizer


def quantizer_of(layer: QuantLayer) -> WeightQuantizer:
    """Return the quantizer of a layer's weight, its scales set.

    Raises:
        ValueError: If the weight stays float.
    """
    quantizer = layer.weight_quantizer
    if quantizer is None:
        raise ValueError("the weight of this layer stays float, so it has no codes")
    if not quantizer.ready:
        layer.fit_weight()
    return quantizer


def rows_of(layer: QuantLayer) -> Tensor:
    """Return the rows of a layer's weight as rounding sees them, float32 [C, in / groups, ...]."""
    return quantizer_of(layer).rows_to_round(layer.whole_weight)


def codes_of(layer: QuantLayer) -> Tensor:
    """Return the codes that rounding to nearest gives, whole numbers, shaped as `rows_of`."""
    return quantizer_of(layer).on_grid.codes(rows_of(layer))


@torch.no_grad()
def hold_codes(layer: QuantLayer, codes: Tensor) -> None:
    """Let a layer have these codes, in place; its weight no longer trains.

    Another layer that shared the weight keeps the old one. The scales stay.

    Args:
        layer: of a prepared model.
        codes: on the layer's grid, shaped as `rows_of`.

    Raises:
        ValueError: If they are not on its grid.
    """
    quantizer = quantizer_of(layer)
    on_grid = quantizer.on_grid
    rows = on_grid.values(codes.to(on_grid.scale.dtype))
    whole = layer.whole_weight.detach()
    held = torch.empty_like(whole).copy_(layer.layout.weight(rows))
    hold_weight(layer, held)
    quantizer.squashes = quantizer.tracker.freezes = False  # both are in the weight by now
    if not torch.equal(codes_of(layer), codes.float()):
        raise ValueError(f"codes beyond the grid, which ends at {on_grid.grid.code_max}")

"""Weights at other widths, as `qtool convert RECIPE` would round them: by what a layer is given.

Rounding to nearest tells little of a width of few bits: errors that make up for each other (GPTQ),
on scales of the smallest error of the output, cost a fraction of it, and another one in each layer.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.post_training.gptq import compensated_codes, hessian
from qtool.post_training.in_order import rows_seen
from qtool.post_training.walk import walk
from qtool.post_training.weight_scales import best_scales, may_choose
from qtool.quantizers.control import in_float
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import WeightQuantization

LARGEST_KEPT = 2**28  # rounded weights, all together, beyond which they are rounded anew each time


def may_be_kept(
    layers: Mapping[str, QuantLayer], widths: Mapping[str, Mapping[int, WeightQuantization]]
) -> bool:
    """Tell whether weights of all widths of layers may be kept together."""
    return sum(layers[n].weight.numel() * len(each) for n, each in widths.items()) <= LARGEST_KEPT


def fitted(layer: QuantLayer, settings: WeightQuantization) -> WeightQuantizer:
    """Return a quantizer of other settings for a layer's weight, its scales fitted to that."""
    weight = layer.whole_weight
    made = WeightQuantizer(settings, weight, layer.layout).eval()
    made.set_progress(1.0)
    if not made.ready:
        made.fit(weight)
    return made


@torch.no_grad()
def compensated_weights(
    model: nn.Module, images: Tensor, widths: Mapping[str, Mapping[int, WeightQuantization]]
) -> dict[tuple[str, int], Tensor]:
    """Return layer and width -> its weight, rounded with errors that make up for each other.

    A layer that a pass calls several times, or whose inputs tell nothing, is not among them; none
    is where they would take too much memory.

    Args:
        model: prepared and calibrated, in evaluation mode; it is left as it was.
        images: [B, ...], that the network is shown in float.
        widths: layer -> width -> the settings of its weight at that width.
    """
    found: dict[tuple[str, int], Tensor] = {}
    if not may_be_kept(quant_layers(model), widths):
        return found

    def visit(name: str, layer: QuantLayer, x: Tensor) -> None:
        if name not in widths:
            return
        moments, weight = hessian(rows_seen(layer, x)), layer.whole_weight
        for bits, settings in widths[name].items():
            quantizer = fitted(layer, settings)
            rows = quantizer.rows_to_round(weight)
            if may_choose(quantizer):
                scales = best_scales(quantizer, rows.flatten(1), moments.float())
                quantizer.scale.copy_(scales)
            codes = compensated_codes(rows, quantizer.on_grid, moments)
            if codes is not None:
                values = layer.layout.weight(quantizer.on_grid.values(codes))
                found[name, bits] = torch.empty_like(weight).copy_(values)

    with in_float(model):
        walk(model, Inputs.of(images), visit)
    return found

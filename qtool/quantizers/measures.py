"""What the codes of a model's weights are like at one moment, layer by layer: read, not changed.

It takes a rounding of every weight and no pass of the model, so that each epoch of each run can
afford it.
"""

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

from qtool.graph.inputs import where_float64
from qtool.graph.sites.frames import sites_of
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.on_grid import OnGrid
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.relu import quant_relus
from qtool.quantizers.sites import SiteQuantizer


class CodeMeasures(TypedDict, total=False):
    """Measure -> layer, or place of a quantizer -> value; a measure of nothing is absent.

    Attributes:
        saturated_weights: share beyond the outermost levels, 0..1.
        levels_in_use: different codes.
        sqnr: of the weight over its error, 10 log10(sum w^2 / sum (w - w_hat)^2), decibels; a
            weight without an error, or of zeros, has none.
        weight_scale: the step; of several channels, the mean.
        input_scale: the step of activations.
    """

    saturated_weights: dict[str, float]
    levels_in_use: dict[str, int]
    sqnr: dict[str, float]
    weight_scale: dict[str, float]
    input_scale: dict[str, float]


@torch.no_grad()
def code_measures(model: nn.Module) -> CodeMeasures:
    """Return what the codes and steps of a prepared model are like, as it is now."""
    beyond, used, ratio, steps = dict[str, float](), dict[str, int](), dict[str, float](), {}
    for name, layer in quant_layers(model).items():
        quantizer = layer.weight_quantizer
        if quantizer is None or not quantizer.ready:
            continue
        on_grid = quantizer.on_grid
        weight = quantizer.rows_to_round(layer.whole_weight)
        codes = on_grid.codes(weight)
        beyond[name] = saturated(weight, on_grid)
        used[name] = levels_used(codes, on_grid.grid)
        if (found := decibels(weight, on_grid.values(codes))) is not None:
            ratio[name] = found
        steps[name] = float(on_grid.step.mean())
    inputs = {
        name: float(quantizer.used_scale)
        for name, quantizer in activation_quantizers(model).items()
        if quantizer.ready
    }
    made: CodeMeasures = {}
    if steps:
        made["saturated_weights"], made["levels_in_use"] = beyond, used
        made["sqnr"], made["weight_scale"] = ratio, steps
    if inputs:
        made["input_scale"] = inputs
    return made


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return what quantizes activations, by the layer, ReLU or site whose values they are."""
    found: dict[str, ActivationQuantizer] = {}
    for name, layer in quant_layers(model).items():
        if layer.input_quantizer is not None:
            found[name] = layer.input_quantizer
    for name, relu in quant_relus(model).items():
        for call, quantizer in enumerate(relu.quantizers):
            if isinstance(quantizer, ActivationQuantizer):
                found[f"{name}#{call}" if call else name] = quantizer
    for site, stand in sites_of(model).items():
        if isinstance(stand, SiteQuantizer):
            found.setdefault(site, stand)
    return found


def saturated(x: Tensor, on_grid: OnGrid) -> float:
    """Return the share of real values that lie beyond the outermost levels.

    Straight_through stops their gradients. Values below an unsigned grid are those that ReLU makes
    0, and do not count.
    """
    levels = x / on_grid.scale + on_grid.zero_point
    outside = (levels > on_grid.grid.code_max).sum()
    if on_grid.grid.kind != "unsigned":
        outside += (levels < on_grid.grid.code_min).sum()
    return int(outside) / max(1, x.numel())


def clipped(x: Tensor, kwargs: Mapping[str, object]) -> Tensor:
    """Return what a quantizer rounds, where it is asked to clip x first."""
    top = kwargs.get("top")
    if not kwargs.get("rectify"):
        return x
    return x.clamp(min=0, max=top if isinstance(top, float) else None)


def levels_used(codes: Tensor, grid: IntegerGrid) -> int:
    """Return how many different codes there are."""
    places = ((codes - grid.code_min) / grid.code_step).to(torch.uint8)  # of 256 at most
    return int((torch.bincount(places.flatten()) > 0).sum())


def decibels(weight: Tensor, rounded: Tensor) -> float | None:
    """Return 10 log10(sum w^2 / sum (w - w_hat)^2), or None where either sum is 0."""
    weight, rounded = where_float64(weight), where_float64(rounded)
    power = weight.square().sum(dtype=torch.float64)
    error = (weight - rounded).square_().sum(dtype=torch.float64)
    return float(10 * torch.log10(power / error)) if float(power) and float(error) else None

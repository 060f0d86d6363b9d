"""What the codes of a trained network's layers are like: levels in use, their error, their rest."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qtool.numerics.on_grid import OnGrid
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.reports.layer_figures import LayerFigures
from qtool.reports.results import EpochLine


@torch.no_grad()
def layer_figures(model: nn.Module) -> list[LayerFigures]:
    """Return what there is to say of each quantized layer of a prepared and trained model.

    Args:
        model: from `prepare`; it is left as it was.
    """
    return [_figures(name, layer) for name, layer in quant_layers(model).items()]


def with_history(
    figures: Sequence[LayerFigures], history: Sequence[EpochLine]
) -> list[LayerFigures]:
    """Return the same with how restless codes were, epoch by epoch."""
    return [
        each.model_copy(
            update={
                measure: [
                    values[each.layer]
                    for line in history
                    if each.layer in (values := getattr(line, measure) or {})
                ]
                for measure in ("flip_ratio", "oscillation_frequency")
            }
        )
        for each in figures
    ]


def _figures(name: str, layer: QuantLayer) -> LayerFigures:
    weights, inputs = layer.weight_quantizer, layer.quantizer_of_input
    said: Mapping[str, object] = dict.fromkeys(("levels_used", "levels", "saturated", "sqnr"))
    if weights is not None and weights.ready:
        rows = weights.before_rounding(layer.whole_weight.detach())
        said = _of_codes(rows, weights.on_grid)
    return LayerFigures.model_validate(
        {
            "layer": name,
            "shape": list(layer.weight.shape),
            "weight_bits": weights and weights.bits,
            "input_bits": inputs and inputs.bits,
            **said,
            "weight_scale": _ends(weights),
            "input_scale": _ends(inputs),
        }
    )


def _of_codes(rows: Tensor, on_grid: OnGrid) -> dict[str, object]:
    """Return what the codes of a weight's rows [C, ...] are like, and how far they are from it."""
    codes, grid = on_grid.codes(rows), on_grid.grid
    width = grid.code_max - grid.code_min + 1
    counts = torch.bincount((codes - grid.code_min).long().flatten(), minlength=width)
    error = float((rows - on_grid.values(codes)).double().square().sum())
    power = float(rows.double().square().sum())
    return {
        "levels_used": int((counts > 0).sum()),
        "levels": grid.qmax - grid.qmin + 1,
        "saturated": int(counts[0] + counts[-1]) / max(1, codes.numel()),
        "sqnr": 10 * math.log10(power / error) if error > 0 and power > 0 else None,
    }


def _ends(quantizer: FakeQuantize | None) -> tuple[float, float] | None:
    if quantizer is None or not quantizer.ready:
        return None
    scale = quantizer.used_scale
    return float(scale.min()), float(scale.max())

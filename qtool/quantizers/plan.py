"""What `prepare` made of a model, layer by layer, to be printed before training."""

from torch import nn

from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.door.entry import weights_of
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.health import weight_findings
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.saturation import may_saturate
from qtool.quantizers.sites import SiteQuantizer
from qtool.reports.inspections import PlanRow


def plan(model: nn.Module) -> list[PlanRow]:
    """Return every layer with its bits, and every layer left float with the reason, in order."""
    state, layers = prepared_state(model), quant_layers(model)
    behind = {norm.layer: norm.name for norm in state.recording.norms if norm.reason}
    rows = []
    for name, module in model.named_modules():
        if name in layers:
            row = _quantized_row(name, layers[name])
            notes = [found.says for found in weight_findings(name, layers[name], begun=False)]
            if norm := behind.get(name):
                notes.insert(0, f"{norm} stays: {state.not_folded[norm]}")
            rows.append(row.model_copy(update={"note": "; ".join(notes)}) if notes else row)
        elif name in state.left_float:
            weights = weights_of(module).values()
            shape = list(max(weights, key=lambda w: (w.ndim, w.numel())).shape)
            why = state.left_float[name]
            rows.append(
                PlanRow(
                    name=name,
                    shape=shape,
                    weights="float",
                    weights_how="",
                    activations="float",
                    activations_how="",
                    why=why,
                )
            )
    return rows


def _quantized_row(name: str, layer: QuantLayer) -> PlanRow:
    weights, weights_how = _described(layer.weight_quantizer)
    if layer.weight_quantizer is not None:
        each = "channel" if layer.weight_quantizer.scale.ndim else "tensor"
        weights_how = f"{weights_how}, per {each}"
    activations, activations_how = _described(layer.quantizer_of_input)
    if layer.source and not isinstance(layer.source[0], SiteQuantizer):
        activations = f"{activations}, at the ReLU"
    row = PlanRow(
        name=name,
        shape=list(layer.weight.shape),
        weights=weights,
        weights_how=weights_how,
        activations=activations,
        activations_how=activations_how,
        why="",
    )
    return row.model_copy(update={"may_saturate": True}) if may_saturate(layer) else row


def _described(quantizer: FakeQuantize | None) -> tuple[str, str]:
    """Return width and grid, and how the range is set and the gradient passed."""
    if quantizer is None:
        return "float", ""
    grid = quantizer.grid.kind if quantizer.grid else "auto"
    fewer = quantizer.grid is not None and quantizer.grid.bits < quantizer.bits
    steps = f", {quantizer.bits - 1}-bit steps" if fewer else ""
    how = f"{quantizer.settings.range}, {quantizer.gradient}"
    return f"{quantizer.bits}-bit {grid}{steps}", how


def mean_weight_bits(model: nn.Module) -> float:
    """Return the bits of an average weight of the model's layers; float weights count 32."""
    total = bits = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
            continue
        quantizer = module.weight_quantizer if isinstance(module, QuantLayer) else None
        total += weight.numel()
        bits += weight.numel() * (quantizer.bits if quantizer else 32)
    return bits / total if total else 32.0

"""Biases in integers: what int32 makes of them, and where they stay float.

Runtimes hold a bias in steps of s_x s_w, the scale of the products that it is added to. A model may
be trained with its biases there already.
"""

import torch
from torch import nn

from qtool.conversion.fold_batch_norm import shift_norm
from qtool.conversion.norms import norm_of, norm_parts
from qtool.conversion.parts import GATE_SLOPE, Parts, fold, make_ready
from qtool.conversion.standing import Standing
from qtool.graph.copies import copy_of
from qtool.graph.inputs import device_of, has_float64
from qtool.numerics.on_grid import OnGrid
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.deployed import prepared_state, see_deployed
from qtool.quantizers.layers import quant_layers

INT32_MAX = 2**31 - 1


@torch.no_grad()
def round_biases(model: nn.Module) -> None:
    """Move each bias of a prepared model to where int32 will put it, in place.

    Runtimes hold a bias in steps of s_x s_w, which at few bits is coarse enough to move values
    across rounding thresholds. A model that is trained and judged with such biases loses nothing
    when it is converted. Where a batch norm follows, its beta moves, or the mean that it subtracts
    where it has none; else the layer's bias, before whatever is folded into it. Biases that stay
    float, because what follows is rounded at zero, do not move.

    Raises:
        ConversionError: If a range was never set.
    """
    home = device_of(model)
    if has_float64(home):
        _round_biases(model)
        return
    model.cpu()
    try:
        _round_biases(model)
    finally:
        model.to(home)


def _round_biases(model: nn.Module) -> None:
    """Do what `round_biases` does, on a device that has float64."""
    state, deployed = prepared_state(model), copy_of(model).eval()
    if state.recording.example is not None:
        state = see_deployed(deployed, state.recording.example.to(device_of(model)))
    make_ready(model, deployed)
    layers, standing = quant_layers(deployed), Standing.of(deployed, state)
    now = Standing.of(model, state)
    floating = float_biases(standing)
    for name, source in quant_layers(model).items():
        inputs = source.quantizer_of_input
        if name in floating or name not in layers:
            continue
        if source.weight_quantizer is None or inputs is None:
            continue
        exact = fold(name, source, now, notes=[])
        fitted = integer_bias(exact, inputs.on_grid, notes=[])
        if exact.bias is None or fitted.bias is None or fitted.spec.bias != "int32":
            continue
        steps = (inputs.on_grid.scale * fitted.scale.float()).double()
        by = fitted.bias * steps - exact.bias
        if exact.spec.output_gate:
            by = by * GATE_SLOPE  # it moves what the gate is taken of
        norms = [n for n in state.recording.norms if n.name == exact.spec.batch_norm]
        if norms:
            shift_norm(model, norms[0], source.bias, by)
        elif source.bias is not None:
            source.bias.copy_(source.bias.double() + by)
    _round_norms(now)


def _round_norms(standing: Standing) -> None:
    """Move what the norms shift by that become convolutions of each channel by itself."""
    operations = {str(made.site): made for made in standing.state.graph.operations}
    for join in standing.state.placement.joins.values():
        if not join.norm or not {join.output, *join.inputs} <= standing.quantizers.keys():
            continue
        given = standing.quantizers[join.inputs[0]].on_grid
        operation = operations[str(join.site)]
        exact = norm_parts(standing.model, join, operation, given)
        if exact is None or exact.bias is None:
            continue
        fitted = integer_bias(exact, given, notes=[])
        if fitted.bias is not None and fitted.spec.bias == "int32":
            steps = (given.scale * fitted.scale.float()).double()
            by = fitted.bias * steps - exact.bias
            shift_norm(standing.model, norm_of(join, operation), None, by)


def float_biases(standing: Standing) -> set[str]:
    """Return the layers whose outputs are rounded next where there is a threshold at zero.

    That is at the site behind a layer, or at the inputs that its output goes to.
    """
    layers = quant_layers(standing.model)
    at_zero = {name for name, layer in layers.items() if _at_zero(layer.quantizer_of_input)}
    found = {name for name, fed in standing.state.recording.feeds.items() if fed & at_zero}
    behind = {name: standing.quantizers.get(standing.site_behind(name)) for name in layers}
    rounded = {name for name, quantizer in behind.items() if quantizer is not None}
    return (found - rounded) | {name for name in rounded if _at_zero(behind[name])}


def _at_zero(quantizer: ActivationQuantizer | None) -> bool:
    if quantizer is None:
        return False
    return quantizer.deployed_rounding == "ceil" or quantizer.known_grid.kind == "mid_rise"


def integer_bias(parts: Parts, given: OnGrid, notes: list[str]) -> Parts:
    """Turn the bias into int32 with scale s_x s_w, where the accumulator has room for it.

    A channel without room, or with s_w = 0, whose weights cannot matter beside the bias has its
    codes written as 0; a layer with any other such channel keeps a float bias.

    Args:
        parts: of a layer whose weight and input are quantized.
        given: its input.
        notes: takes what a user should know.
    """
    spec, codes, scale, bias = parts
    if bias is None:
        return parts
    sums = codes.to(torch.int64).abs().flatten(1).sum(1).double() * given.reach
    steps = (given.scale * scale.float()).double()
    crowded = (steps == 0) | (bias.abs() / steps + sums > INT32_MAX)
    if bool(crowded.any()):
        negligible = steps * sums < 1e-6 * bias.abs().max()
        if bool((crowded & ~negligible).any()):
            reason = "its bias does not fit into int32 at the scale of its products"
            notes.append(f"{spec.name}: {reason}; it stays float")
            return parts.unfused(reason)
        rows = crowded.reshape(-1, *[1] * (codes.ndim - 1))
        codes = torch.where(rows, torch.zeros_like(codes), codes)
        alone = bias.abs().clamp_min(1e-12) / (given.scale.double() * 2**30)
        scale = torch.where(crowded, alone, scale)
        steps = (given.scale * scale.float()).double()
        count = int(crowded.sum())
        notes.append(f"{spec.name}: {count} channels are their bias alone; codes written as 0")
        spec = spec.model_copy(update={"rewritten": count})
    return Parts(spec.model_copy(update={"bias": "int32"}), codes, scale, torch.round(bias / steps))

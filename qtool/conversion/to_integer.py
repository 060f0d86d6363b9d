"""Fake-quantized model -> integer model, and the proof that both say the same."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from qtool.conversion.fold_batch_norm import fold_batch_norm
from qtool.conversion.proof import prove
from qtool.errors import ConversionError
from qtool.graph.swap import keep_state, replace_module
from qtool.integer.layers import (
    Converted,
    IntegerLayer,
    LayerSpec,
    make_integer_layer,
)
from qtool.integer.relu import CallSpec, IntegerReLU, ReluSpec
from qtool.numerics.grid import quantize, to_codes
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.control import blend_alphas
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.prepare import Prepared, prepared_state
from qtool.quantizers.relu import QuantReLU, quant_relus

INT32_MAX = 2**31 - 1


@torch.no_grad()
def convert(model: nn.Module, batches: Iterable[Tensor] | None = None) -> nn.Module:
    """Return the integer model of a prepared and trained (or calibrated) model.

    Batch norms are folded, weights become int8 codes with scales, latent weights are dropped.
    Before it returns, the function proves on real batches that every layer gives what the
    fake-quantized layer gives, and that every code lies on its grid.

    Args:
        model: from `prepare`; it is not changed.
        batches: inputs [B, ...] for the proof; default: the images that the first forward pass
            of the model saw.

    Raises:
        ConversionError: If a blend has not reached 1, a range was never set, or the proof fails.
    """
    state = prepared_state(model)
    _make_ready(model)
    reference = deepcopy(model).eval()
    integer = deepcopy(reference)
    done = Converted(left_float=dict(state.left_float))
    if floating := _float_biases(reference, state):
        done.notes.append(
            f"{', '.join(sorted(floating))}: biases stay float, for what follows is rounded at "
            f"zero (ceil, or {{-1, +1}}), and in steps of int32 many sums would lie exactly there"
        )
    for name, source in quant_layers(reference).items():
        parts = _fold(name, source, reference, state, done)
        layer = _convert_layer(parts, source, done, stays_float=name in floating)
        replace_module(integer, name, layer)
        if layer.spec.batch_norm is not None:
            replace_module(integer, layer.spec.batch_norm, nn.Identity())
        done.layers.append(layer.spec)
    for name, relu in quant_relus(reference).items():
        converted = _convert_relu(name, relu).to(next(reference.parameters()).device)
        replace_module(integer, name, converted)
        done.relus.append(converted.spec)
    keep_state(integer, done)
    example = state.recording.example
    proof = batches if batches is not None else ([example] if example is not None else [])
    prove(reference, integer, proof)
    return integer


def _float_biases(model: nn.Module, state: Prepared) -> set[str]:
    """Return the layers whose outputs go to an input that has a rounding threshold at zero."""
    at_zero = {
        name
        for name, layer in quant_layers(model).items()
        if (q := layer.quantizer_of_input)
        and (q.deployed_rounding == "ceil" or q.known_grid.kind == "mid_rise")
    }
    return {name for name, fed in state.recording.feeds.items() if fed & at_zero}


def _make_ready(model: nn.Module) -> None:
    """Search the scales that nothing has asked for yet; refuse what training has to do first."""
    if unfinished := {name: a for name, a in blend_alphas(model).items() if a < 1.0}:
        names = ", ".join(f"{name} (alpha {_below_one(a)})" for name, a in unfinished.items())
        raise ConversionError(
            f"the blend has not reached 1 in {names}; train to the end of it "
            f"(in a loop of your own, qtool.set_progress moves it)"
        )
    for layer in quant_layers(model).values():
        if layer.weight_quantizer is not None and not layer.weight_quantizer.ready:
            layer.fit_weight()
    quantizers = [(n, m) for n, m in model.named_modules() if isinstance(m, FakeQuantize)]
    unset = [name for name, quantizer in quantizers if not quantizer.ready]
    if unset:
        raise ConversionError(
            f"no data has set the range of {', '.join(unset)}; calibrate or train the model first"
        )


def _below_one(alpha: float) -> str:
    return "just below 1" if alpha >= 0.9995 else f"{alpha:.3f}"


@torch.no_grad()
def round_biases(model: nn.Module) -> None:
    """Move each bias of a prepared model to where int32 will put it, in place.

    Runtimes hold a bias in steps of s_x s_w, which at few bits is coarse enough to move values
    across rounding thresholds. A model that is trained and judged with such biases loses nothing
    when it is converted. The batch norm's beta moves where there is one, else the layer's bias.
    Biases that stay float, because what follows is rounded at zero, do not move.

    Raises:
        ConversionError: If a range was never set.
    """
    state = prepared_state(model)
    _make_ready(model)
    floating = _float_biases(model, state)
    for name, source in quant_layers(model).items():
        if name in floating or source.weight_quantizer is None or source.quantizer_of_input is None:
            continue
        exact = _fold(name, source, model, state, Converted())
        fitted = _integer_bias(exact, source, Converted())
        if exact.bias is None or fitted.bias is None or fitted.spec.bias != "int32":
            continue
        inputs = source.quantizer_of_input
        input_scale = inputs.known_grid.code_scale(inputs.scale)
        steps = (input_scale * fitted.scale.float()).double()
        norm = exact.spec.batch_norm
        holder = source if norm is None else model.get_submodule(norm)
        if isinstance(holder.bias, Tensor):
            holder.bias.add_((fitted.bias * steps - exact.bias).to(holder.bias.dtype))


def _rounding(quantizer: ActivationQuantizer) -> Literal["half_to_even", "ceil"]:
    return "ceil" if quantizer.deployed_rounding == "ceil" else "half_to_even"


def _place_of(quantizer: ActivationQuantizer, model: nn.Module) -> str:
    """Return the ReLU and the call that a quantizer stands at, as NAME:CALL."""
    return next(
        f"{name}:{call}"
        for name, relu in quant_relus(model).items()
        for call, found in enumerate(relu.quantizers)
        if found is quantizer
    )


def _convert_relu(name: str, source: QuantReLU) -> IntegerReLU:
    """Return the integer form of a quantized ReLU."""
    calls = [
        CallSpec(q.known_grid.bits, q.known_grid.kind, _rounding(q))
        if isinstance(q, ActivationQuantizer)
        else CallSpec()
        for q in source.quantizers
    ]
    relu = IntegerReLU(ReluSpec(name, calls))
    for call, quantizer in enumerate(source.quantizers):
        if isinstance(quantizer, ActivationQuantizer):
            relu.scales[call] = quantizer.scale
    return relu


class _Parts(NamedTuple):
    """A layer on its way into integers.

    codes: int8, or float32 where the weight is float; scale: float64 [C]; bias: float64 [C].
    """

    spec: LayerSpec
    codes: Tensor
    scale: Tensor
    bias: Tensor | None


def _convert_layer(
    parts: _Parts, source: QuantLayer, done: Converted, *, stays_float: bool
) -> IntegerLayer:
    """Return the integer form of one layer, whose batch norm is folded in where that is exact."""
    if source.weight_quantizer is not None and source.quantizer_of_input is not None:
        if not stays_float:
            parts = _integer_bias(parts, source, done)
        elif parts.bias is not None:
            why = "its bias stays float, for what follows is rounded at zero"
            parts = parts._replace(spec=replace(parts.spec, unfused=why))
    elif not parts.spec.unfused:
        side = "input" if source.quantizer_of_input is None else "weight"
        parts = parts._replace(spec=replace(parts.spec, unfused=f"its {side} is float"))
    return _fill(parts, source)


def _fold(
    name: str, source: QuantLayer, model: nn.Module, state: Prepared, done: Converted
) -> _Parts:
    """Return a layer's codes, scales and bias, its batch norm folded in where that is exact."""
    weights, inputs = source.weight_quantizer, source.quantizer_of_input
    if inputs is not None:
        inputs.place_zero_point()
    spec = LayerSpec(
        name=name,
        kind="Conv2d" if isinstance(source, nn.Conv2d) else "Linear",
        shape=list(source.weight.shape),
        weight_bits=weights.known_grid.bits if weights else None,
        weight_grid=weights.known_grid.kind if weights else None,
        input_bits=inputs.known_grid.bits if inputs else None,
        input_grid=inputs.known_grid.kind if inputs else None,
        bias="none" if source.bias is None else "float32",
        weight_estimator=weights.gradient if weights else "",
        input_estimator=inputs.gradient if inputs else "",
        input_rounding="half_to_even" if source.source or inputs is None else _rounding(inputs),
        input_from=_place_of(source.source[0], model) if source.source else "",
    )
    bias = None if source.bias is None else source.bias.detach().double()
    if weights is None:
        ones = torch.ones(len(source.weight), dtype=torch.float64, device=source.weight.device)
        return _Parts(spec, source.weight.detach(), ones, bias)
    grid = weights.known_grid
    weight = weights.before_rounding(source.weight.detach())
    q = quantize(weight, weights.scale.detach(), 0, grid)
    codes, scale = to_codes(q, weights.scale.detach(), grid)
    scale = scale.reshape(-1).expand(codes.shape[0]).double()
    norm_name = state.recording.batch_norms.get(name)
    if norm_name is None:
        return _Parts(spec, codes, scale, bias)
    norm: Any = model.get_submodule(norm_name)
    folded = fold_batch_norm(scale, bias, norm)
    negative = folded.sign.reshape(-1, *[1] * (codes.ndim - 1))
    lowest = (codes == grid.code_min) & (negative < 0)
    if grid.kind == "full" and bool(lowest.any()):
        reason = (
            f"holds {grid.code_min} in a channel whose batch norm has a negative gamma, "
            "which a full grid cannot negate"
        )
        done.notes.append(f"{name} {reason}; its batch norm stays float. Use grid: narrow")
        return _Parts(replace(spec, unfused=reason), codes, scale, bias)
    spec = replace(spec, batch_norm=norm_name, bias="float32")
    return _Parts(spec, codes * negative, folded.scale, folded.bias)


def _integer_bias(parts: _Parts, source: QuantLayer, done: Converted) -> _Parts:
    """Turn the bias into int32 with scale s_x s_w, where the accumulator has room for it.

    A channel without room, or with s_w = 0, whose weights cannot matter beside the bias has its
    codes written as 0; a layer with any other such channel keeps a float bias.
    """
    spec, codes, scale, bias = parts
    inputs = source.quantizer_of_input
    assert inputs is not None
    if bias is None:
        return parts
    grid, zero = inputs.known_grid, float(inputs.zero_point)
    reach = max(abs(grid.code_min - zero), abs(grid.code_max - zero))
    input_scale = grid.code_scale(inputs.scale.detach())
    sums = codes.to(torch.int64).abs().flatten(1).sum(1).double() * reach
    steps = (input_scale * scale.float()).double()
    crowded = (steps == 0) | (bias.abs() / steps + sums > INT32_MAX)
    if bool(crowded.any()):
        negligible = steps * sums < 1e-6 * bias.abs().max()
        if bool((crowded & ~negligible).any()):
            reason = "its bias does not fit into int32 at the scale of its products"
            done.notes.append(f"{spec.name}: {reason}; it stays float")
            return parts._replace(spec=replace(spec, unfused=reason))
        rows = crowded.reshape(-1, *[1] * (codes.ndim - 1))
        codes = torch.where(rows, torch.zeros_like(codes), codes)
        alone = bias.abs().clamp_min(1e-12) / (input_scale.double() * 2**30)
        scale = torch.where(crowded, alone, scale)
        steps = (input_scale * scale.float()).double()
        count = int(crowded.sum())
        done.notes.append(f"{spec.name}: {count} channels are their bias alone; codes written as 0")
        spec = replace(spec, rewritten=count)
    return _Parts(replace(spec, bias="int32"), codes, scale, torch.round(bias / steps))


def _fill(parts: _Parts, source: QuantLayer) -> IntegerLayer:
    """Return the integer layer that holds the parts."""
    layer = make_integer_layer(parts.spec, source).to(parts.codes.device)
    layer.codes.copy_(parts.codes)
    if layer.weight_scale is not None:
        layer.weight_scale.copy_(parts.scale)
    if parts.bias is not None and layer.bias is not None:
        layer.bias.copy_(parts.bias)
    if source.quantizer_of_input is not None:
        assert layer.input_scale is not None
        assert layer.input_zero_point is not None
        quantizer = source.quantizer_of_input
        layer.input_scale.copy_(quantizer.known_grid.code_scale(quantizer.scale.detach()))
        layer.input_zero_point.copy_(quantizer.zero_point)
    return layer.eval()

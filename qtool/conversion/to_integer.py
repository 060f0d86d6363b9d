"""Fake-quantized model -> integer model, and the proof that both say the same."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Literal

import torch
from torch import nn

from qtool.conversion.biases import float_biases, integer_bias, round_biases
from qtool.conversion.numbers import refuse_bad_numbers, refuse_bad_parts
from qtool.conversion.parts import Parts, fold, make_ready
from qtool.conversion.proof import prove
from qtool.conversion.sites import convert_sites
from qtool.conversion.standing import Standing, rounding_of
from qtool.errors import ConversionError
from qtool.graph.copies import copy_of, itself
from qtool.graph.inputs import Inputs, device_of, has_float64, inputs_from
from qtool.graph.own_norm import as_known, without_norm
from qtool.graph.recorder import KEPT
from qtool.graph.rewritten import rewritten_in
from qtool.graph.swap import keep_state, replace_module
from qtool.integer.converted import Converted
from qtool.integer.exact import exact_arithmetic
from qtool.integer.layers import IntegerLayer, integer_layers, make_integer_layer
from qtool.integer.relu import CallSpec, IntegerReLU, ReluSpec
from qtool.limits import FLOAT_LAYER, NO_LONGER_AFFINE
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.deployed import prepared_state, see_deployed
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.relu import QuantReLU, quant_relus
from qtool.quantizers.saturation import take_fewer_steps


@torch.no_grad()
def convert(
    model: nn.Module,
    batches: Iterable[object] | None = None,
    *,
    saturation: Literal["allow", "avoid"] = "allow",
) -> nn.Module:
    """Return the integer model of a prepared and trained (or calibrated) model.

    Batch norms are folded, weights become int8 codes with scales, latent weights are dropped.
    Before it returns, the function proves on real batches that every layer gives what the
    fake-quantized layer gives, and that every code lies on its grid.

    Args:
        model: from `prepare`; it is not changed. Where its device has no float64, which exact sums
            take, the integer model is on the CPU.
        batches: for the proof, as `calibrate` takes them; default: the images that the first
            forward pass of the model saw.
        saturation: avoid rounds channels that could saturate on processors without VNNI anew, in
            steps of one bit fewer.

    Raises:
        ValueError: If there is no batch, or one has another form than the example.
        ConversionError: If a number is not finite or a scale is zero, a blend has not reached 1,
            a range was never set, nothing was seen or given for the proof, or it fails.
    """
    model = itself(model)
    prepared_state(model)
    refuse_bad_numbers(model)
    reference = copy_of(model).eval()
    if not has_float64(device_of(model)):
        reference = reference.cpu()
    state = prepared_state(reference)
    if batches is None and state.recording.example is None:
        make_ready(reference, reference)  # its error says more than that of a proof on nothing
    proof = _batches_of_proof(reference, batches)
    first = next(proof)
    example = state.recording.example or first.first(KEPT)
    with exact_arithmetic(reference):
        state = see_deployed(reference, example.to(device_of(reference)))
    keep_state(reference, state)
    make_ready(reference, reference)
    if saturation == "avoid":
        take_fewer_steps(reference)
    integer = copy_of(reference)
    state.steps.leave(integer)  # it has none, and fullgraph=True could not trace them
    done = Converted(left_float=dict(state.left_float), not_folded=dict(state.not_folded))
    done.float_sites = {**state.placement.without_quantizer, **state.placement.float_joins}
    done.rewritten = rewritten_in(reference)
    standing = Standing.of(reference, state)
    if floating := float_biases(standing):
        done.notes.append(
            f"{', '.join(sorted(floating))}: biases stay float, for what follows is rounded at "
            f"zero (ceil, or {{-1, +1}}), and in steps of int32 many sums would lie exactly there"
        )
    for name, source in quant_layers(reference).items():
        parts = fold(name, source, standing, done.notes)
        if count := parts.spec.fewer_steps:
            why = "rounded anew, so that they cannot saturate"
            done.notes.append(f"{name}: {count} of {len(parts.codes)} channels {why}")
        refuse_bad_parts(parts)
        layer = _convert_layer(parts, source, standing, done.notes, stays_float=name in floating)
        integer = replace_module(integer, name, layer)
        if layer.spec.batch_norm is not None:
            integer = without_norm(integer, layer.spec.batch_norm)
        elif norm := state.recording.batch_norms.get(name):
            limit = FLOAT_LAYER if source.weight_quantizer is None else NO_LONGER_AFFINE
            done.not_folded[norm] = parts.spec.unfused or limit.text(layer=name)
        done.layers.append(layer.spec)
    for name, relu in quant_relus(reference).items():
        converted = _convert_relu(name, relu).to(next(reference.parameters()).device)
        integer = replace_module(integer, name, converted)
        done.relus.append(converted.spec)
    layers = integer_layers(integer)
    done.sites, left = convert_sites(integer, standing, layers)
    done.float_sites |= left
    done.notes += [f"{name}: stays float: {why}" for name, why in left.items()]
    depthwise = {spec.norm for spec in done.sites if spec.norm}
    done.not_folded = {n: why for n, why in done.not_folded.items() if n not in depthwise}
    done.notes += _of_norms(done.not_folded)
    keep_state(integer, done)
    done.proof = prove(
        reference, integer, chain([first], proof), done.notes, lambda: _on_steps(reference)
    )
    return integer.eval()


def _on_steps(reference: nn.Module) -> nn.Module:
    """Return a copy whose biases lie where int32 puts them."""
    made = copy_of(reference)
    round_biases(made)
    return made


def _batches_of_proof(model: nn.Module, batches: Iterable[object] | None) -> Iterator[Inputs]:
    """Return inputs for the proof, at least one batch of them.

    Raises:
        ValueError: If the batches given are none, or have another form than the example.
        ConversionError: If none are given, and none were seen.
    """
    state = prepared_state(model)
    if batches is not None:
        return inputs_from(batches, state.form_of_inputs, model, "convert")
    if state.recording.example is None:
        raise ConversionError(
            "no forward pass of this model was seen, so nothing tells which batch norm follows "
            "which layer, nor proves the integer model: give convert batches, or prepare an example"
        )
    return iter([state.recording.example.to(device_of(model))])


def _of_norms(not_folded: Mapping[str, str]) -> list[str]:
    """Return one note for each reason why norms stay beside the layers."""
    found: dict[str, list[str]] = {}
    for name, why in not_folded.items():
        found.setdefault(why, []).append(as_known(name))
    return [f"{', '.join(names)}: not folded: {why}" for why, names in found.items()]


def _convert_layer(
    parts: Parts, source: QuantLayer, standing: Standing, notes: list[str], *, stays_float: bool
) -> IntegerLayer:
    """Return the integer form of one layer, whose batch norm is folded in where that is exact."""
    inputs = source.quantizer_of_input
    if source.weight_quantizer is not None and inputs is not None:
        if not stays_float:
            parts = integer_bias(parts, inputs.on_grid, notes)
        elif parts.bias is not None:
            parts = parts.unfused("its bias stays float, for what follows is rounded at zero")
    elif not parts.spec.unfused:
        side = "input" if source.quantizer_of_input is None else "weight"
        parts = parts.unfused(f"its {side} is float")
    return _fill(parts, source, standing)


def _fill(parts: Parts, source: QuantLayer, standing: Standing) -> IntegerLayer:
    """Return the integer layer that holds the parts."""
    layer = make_integer_layer(parts.spec, source).to(parts.codes.device)
    layer.codes.copy_(layer.layout.weight(parts.codes))
    if layer.weight_scale is not None:
        layer.weight_scale.copy_(parts.scale)
    if parts.bias is not None and layer.bias is not None:
        layer.bias.copy_(parts.bias)
    if source.quantizer_of_input is not None:
        assert layer.input_scale is not None
        assert layer.input_zero_point is not None
        layer.input_scale.copy_(source.quantizer_of_input.on_grid.scale)
        layer.input_zero_point.copy_(source.quantizer_of_input.used_zero_point)
    if layer.output_scale is not None and layer.output_zero_point is not None:
        scale, zero = standing.scale_and_zero(parts.spec.output_site)
        layer.output_scale.copy_(scale)
        layer.output_zero_point.copy_(zero)
    return layer.eval()


def _convert_relu(name: str, source: QuantReLU) -> IntegerReLU:
    """Return the integer form of a quantized ReLU."""
    calls = [
        CallSpec(q.known_grid.bits, q.known_grid.kind, rounding_of(q))
        if isinstance(q, ActivationQuantizer)
        else CallSpec()
        for q in source.quantizers
    ]
    relu = IntegerReLU(ReluSpec(name, calls))
    for call, quantizer in enumerate(source.quantizers):
        if isinstance(quantizer, ActivationQuantizer):
            relu.scales[call] = quantizer.on_grid.scale
    return relu

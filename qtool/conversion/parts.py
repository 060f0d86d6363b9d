"""A layer on its way into integers: its codes, scales and bias, the batch norm folded in."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qtool.conversion.fold_batch_norm import fold_batch_norm, foldable
from qtool.conversion.standing import Standing, rounding_of
from qtool.errors import ConversionError
from qtool.integer.layers import LayerSpec
from qtool.limits import NEGATIVE_GAMMA
from qtool.quantizers.control import blend_alphas
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, kind_of, quant_layers
from qtool.quantizers.relu import site_of
from qtool.quantizers.sites import SiteQuantizer

GATE_SLOPE = 6  # hardsigmoid(y) = clip(y / 6 + 1/2, 0, 1)


class Parts(NamedTuple):
    """What an integer layer will hold.

    codes: of the weight's rows, [C, ...], int8, or float32 where the weight is float; scale:
    float64 [C], of the codes; bias: float64 [C], real values, or integers once the spec says int32.
    """

    spec: LayerSpec
    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def unfused(self, why: str) -> "Parts":
        """Return the parts of a layer that a runtime cannot run in integers alone."""
        return self._replace(spec=self.spec.model_copy(update={"unfused": why}))


def fold(name: str, source: QuantLayer, standing: Standing, notes: list[str]) -> Parts:
    """Return a layer's codes, scales and bias, and its output's grid where it rounds that itself.

    Its batch norm is folded in where that is exact, and so is a hardsigmoid that rounds its output.

    Args:
        name: of the layer.
        source: the layer; it is not changed.
        standing: the fake-quantized model that it is a part of.
        notes: takes what a user should know.
    """
    parts = _with_norm(name, source, standing, notes)
    site = standing.site_behind(name)
    if not site or any(norm != parts.spec.batch_norm for norm in standing.norms_before(site)):
        return parts
    if standing.placed(site).function == "hardsigmoid":
        if parts.spec.weight_bits is None:
            return parts
        parts = _with_hardsigmoid(parts)
    grid = standing.grid(site)
    output = {
        "output_bits": grid.bits,
        "output_grid": grid.grid,
        "output_rounding": grid.rounding,
        "output_site": site,
        "output_top": grid.top,
        "output_bottom": grid.bottom,
    }
    return parts._replace(spec=parts.spec.model_copy(update=output))


def _with_hardsigmoid(parts: Parts) -> Parts:
    """Return parts that compute y / 6 + 1/2 in the place of y.

    hardsigmoid(y) = clip(y / 6 + 1/2, 0, 1), whose ends are those of codes of 1 / 255.
    """
    bias = torch.zeros_like(parts.scale) if parts.bias is None else parts.bias
    update = {"output_gate": "hardsigmoid"}
    update |= {"bias": "float32"} if parts.bias is None else {}
    spec = parts.spec.model_copy(update=update)
    return Parts(spec, parts.codes, parts.scale / GATE_SLOPE, bias / GATE_SLOPE + 0.5)


def _with_norm(name: str, source: QuantLayer, standing: Standing, notes: list[str]) -> Parts:
    """Return a layer's codes, scales and bias, its batch norm folded in where that is exact."""
    model, state = standing.model, standing.state
    weights, inputs = source.weight_quantizer, source.quantizer_of_input
    if inputs is not None:
        inputs.place_zero_point()
    spec = _spec(name, source, standing)
    bias = None if source.bias is None else source.bias.detach().double()
    if weights is None:
        rows = source.layout.rows(source.whole_weight.detach())
        ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        return Parts(spec, rows, ones, bias)
    weight, grid = weights.on_grid, weights.stored_grid
    codes = weight.codes(weights.before_rounding(source.whole_weight.detach())).to(torch.int8)
    scale = weight.scale.reshape(-1).expand(codes.shape[0]).double()
    norms = [norm for norm in state.recording.norms if norm.layer == name and not norm.reason]
    if standing.rounds_at_call(name):
        norms = []  # they read what was rounded
    affine = foldable(model, norms[0]) if norms else None
    if affine is None:
        return Parts(spec, codes, scale, bias)
    folded = fold_batch_norm(scale, bias, affine)
    negative = folded.sign.reshape(-1, *[1] * (codes.ndim - 1))
    lowest = (codes == grid.code_min) & (negative < 0)
    if grid.kind == "full" and bool(lowest.any()):
        reason = NEGATIVE_GAMMA.text(layer=name, code=grid.code_min)
        notes.append(f"{reason}; its batch norm stays float. Use grid: narrow")
        return Parts(spec, codes, scale, bias).unfused(reason)
    spec = spec.model_copy(update={"batch_norm": norms[0].name, "bias": "float32"})
    return Parts(spec, codes * negative, folded.scale, folded.bias)


def _spec(name: str, source: QuantLayer, standing: Standing) -> LayerSpec:
    """Return what is known of an integer layer before its batch norm is folded in."""
    weights, inputs = source.weight_quantizer, source.quantizer_of_input
    given = source.source[0] if source.source else None
    if given is None:
        where = ""
    elif isinstance(given, SiteQuantizer):
        where = standing.source(name)
    else:
        where = str(site_of(given, standing.model))
    return LayerSpec(
        name=name,
        kind=kind_of(source),
        shape=list(source.weight.shape),
        weight_bits=weights.stored_grid.bits if weights else None,
        weight_grid=weights.stored_grid.kind if weights else None,
        input_bits=inputs.known_grid.bits if inputs else None,
        input_grid=inputs.known_grid.kind if inputs else None,
        bias="none" if source.bias is None else "float32",
        weight_estimator=weights.gradient if weights else "",
        input_estimator=inputs.gradient if inputs else "",
        input_rounding="half_to_even" if source.source or inputs is None else rounding_of(inputs),
        fewer_steps=weights.rounded_anew if weights else 0,
        input_from=where,
    )


def make_ready(model: nn.Module, deployed: nn.Module) -> None:
    """Search the scales that nothing has asked for yet; refuse what training has to do first.

    Args:
        model: from `prepare`.
        deployed: the model itself, or the copy whose quantizers alone need be ready: that of
            `see_deployed`.

    Raises:
        ConversionError: If a blend has not reached 1, or a range was never set.
    """
    asked = {name for name, module in deployed.named_modules() if isinstance(module, FakeQuantize)}
    alphas = {name: a for name, a in blend_alphas(model).items() if name in asked and a < 1.0}
    if alphas:
        names = ", ".join(f"{name} (alpha {_below_one(a)})" for name, a in alphas.items())
        raise ConversionError(
            f"the blend has not reached 1 in {names}; train to the end of it "
            f"(in a loop of your own, qtool.set_progress moves it)"
        )
    for layer in quant_layers(model).values():
        if layer.weight_quantizer is not None and not layer.weight_quantizer.ready:
            layer.fit_weight()
    quantizers = [(n, m) for n, m in model.named_modules() if isinstance(m, FakeQuantize)]
    unset = [name for name, quantizer in quantizers if name in asked and not quantizer.ready]
    if unset:
        raise ConversionError(
            f"no data has set the range of {', '.join(unset)}; calibrate or train the model first"
        )


def _below_one(alpha: float) -> str:
    return "just below 1" if alpha >= 0.9995 else f"{alpha:.3f}"

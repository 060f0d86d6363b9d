"""Health: which parts of a prepared model are dead or wasted, read from their codes.

Weights are looked at as they are; activations, and the output, on a batch of inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs, inputs_from, tensors_in
from qtool.graph.recorder import without_traces
from qtool.graph.sites.frames import sites_of
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.scales import SMALLEST_SCALE
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.measures import clipped
from qtool.quantizers.relu import QuantReLU
from qtool.quantizers.sites import SiteQuantizer
from qtool.reports.health import Finding

FEW = 4  # a row whose largest code is below 1/4 of the grid's does with two bits fewer
SEVEN_BITS = 63  # where codes of 8 bits end that saturate nowhere: it is that grid, and no waste
SATURATED = 0.99  # of the values: what is left is no distribution, only a sign
LEVELS = 4  # from here on: with fewer, most values lie at an end by right
ROW = 8  # weights from which a row is judged by its share: fewer may all be as large by chance
SEEN = 32  # values of a channel from which it may be called dead: a few may all be 0 by chance


@torch.no_grad()
def health(model: nn.Module, batch: object = None) -> list[Finding]:
    """Return what should be looked at in a prepared model, before or after training.

    Args:
        model: from `prepare`; it is left as it was.
        batch: of inputs, as `calibrate` takes them, on which activations and output are looked at;
            None looks at weights and scales only.

    Raises:
        ValueError: If the model is not prepared, or the batch has another form than its inputs.
    """
    state = prepared_state(model)
    found: list[Finding] = []
    for name, layer in quant_layers(model).items():
        found += weight_findings(name, layer)
    found += _floored(model)
    if batch is not None:
        inputs = next(iter(inputs_from([batch], state.form_of_inputs, model, "health")))
        seen, outputs = _watched(model, inputs)
        for values in seen:
            found += values.findings()
        found += constant_outputs(list(tensors_in(outputs)))
    return found


def weight_findings(name: str, layer: QuantLayer, *, begun: bool = True) -> list[Finding]:
    """Return what should be looked at in a layer's weight, as its scales are now.

    Until training has begun a learned scale of 8 bits is wide, and its codes few: that is LSQ's
    start, which the first step mends.
    """
    quantizer = layer.weight_quantizer
    if quantizer is None or not quantizer.ready or layer.weight.is_meta:
        return []
    weight = quantizer.before_rounding(layer.whole_weight.detach())
    found = code_findings(name, quantizer.on_grid.codes(weight), quantizer.known_grid)
    starts = quantizer.learns and not begun
    return [finding for finding in found if not (starts and finding.kind == "few_codes")]


def code_findings(name: str, codes: Tensor, grid: IntegerGrid) -> list[Finding]:
    """Return what should be looked at in the codes [C, ...] of a layer's weight."""
    rows = codes.float().flatten(1)
    count, most = len(rows), grid.code_max
    largest = rows.abs().amax(1)
    dead = int((largest == 0).sum())
    if dead == count:
        return [Finding(layer=name, kind="all_zero", says="all weight codes are 0")]
    found = []
    if dead:
        says = f"{dead} of {count} rows have weight codes of 0 only"
        found.append(Finding(layer=name, kind="dead_channels", says=says))
    few = (largest > 0) & (largest < min(most, SEVEN_BITS) / FEW)
    if grid.bits > 1 and few.any():
        says = (
            f"{int(few.sum())} of {count} rows use weight codes up to {int(largest[few].amax())} "
            "only; a smaller scale would round them finer"
        )
        found.append(Finding(layer=name, kind="few_codes", says=says))
    ends = ((rows >= most) | (rows <= grid.code_min)).float().mean(1)
    full = ends >= SATURATED
    if grid.qmax - grid.qmin >= LEVELS and rows.shape[1] >= ROW and full.any():
        says = f"{int(full.sum())} of {count} rows have nearly all weights at the ends of the grid"
        found.append(Finding(layer=name, kind="saturated", says=says))
    return found


def constant_outputs(outputs: list[Tensor]) -> list[Finding]:
    """Return a finding where outputs [B, ...] are the same for every one of several inputs."""
    several = [y for y in outputs if y.ndim and len(y) > 1]
    if not several or any(bool((y != y[:1]).any()) for y in several):
        return []
    says = "the output is the same for every input"
    return [Finding(layer="", kind="constant_output", says=says)]


def _floored(model: nn.Module) -> Iterator[Finding]:
    """Yield a finding for each quantizer with scales at their smallest."""
    for owner, side, quantizer in _quantizers(model):
        if not quantizer.ready:
            continue
        low = (quantizer.used_scale <= SMALLEST_SCALE).reshape(-1)
        if low.any():
            says = f"{int(low.sum())} of {len(low)} scales of its {side} are at their smallest"
            yield Finding(layer=owner, kind="scale_at_floor", says=says)


def _quantizers(model: nn.Module) -> Iterator[tuple[str, str, FakeQuantize]]:
    """Yield each quantizer with the module it belongs to and what it quantizes."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            if module.weight_quantizer is not None:
                yield name, "weight", module.weight_quantizer
            if module.input_quantizer is not None:
                yield name, "input", module.input_quantizer
        elif isinstance(module, QuantReLU):
            for quantizer in module.quantizers:
                if isinstance(quantizer, ActivationQuantizer):
                    yield name, "output", quantizer
    for site, stand in sites_of(model).items():
        if isinstance(stand, SiteQuantizer):
            yield site, "values", stand


def _watched(model: nn.Module, inputs: Inputs) -> tuple[list["_Values"], object]:
    """Return what quantizers make of their values in evaluation, and the model's outputs."""
    seen: dict[tuple[nn.Module, object], _Values] = {}  # by the site, where several share one
    modes = {module: module.training for module in model.modules()}
    handles = []

    def watch(owner: str, side: str, quantizer: ActivationQuantizer) -> None:
        linear = side == "input" and isinstance(model.get_submodule(owner), nn.Linear)

        def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, object]) -> None:
            member = str(kwargs.get("member", owner))
            tokens = side == "values" and args[0].ndim < 4 and not _is_image(model, member)
            axis = -1 if linear or tokens else 1
            values = seen.setdefault((module, member), _Values(member, side, axis))
            values.look(quantizer, clipped(args[0], kwargs))

        handles.append(quantizer.register_forward_pre_hook(look, with_kwargs=True))

    for owner, side, quantizer in _quantizers(model):
        if isinstance(quantizer, ActivationQuantizer) and quantizer.ready:
            watch(owner, side, quantizer)
    try:
        with without_traces(model):
            outputs = inputs.call(model.eval())
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return [values for values in seen.values() if values.count], outputs


def _is_image(model: nn.Module, site: str) -> bool:
    """Tell whether convolutions read the values of a site, whose channels are then axis 1."""
    placed = prepared_state(model).placement.sites.get(site)
    layers = quant_layers(model)
    readers = [layers.get(name) for name in (placed.readers if placed is not None else ())]
    return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in readers)


@dataclass
class _Values:
    """What a quantizer made of its values.

    Attributes:
        axis: of the channels.
        used: bool [channels], whether a code other than that of 0 was seen; None before any.
        ends, count: values at the ends of the grid (0 is no end where there is nothing below),
            and all.
        levels: of the grid.
    """

    owner: str
    side: str
    axis: int
    used: Tensor | None = None
    ends: int = 0
    count: int = 0
    levels: int = 0

    def look(self, quantizer: ActivationQuantizer, values: Tensor) -> None:
        """Take in what a quantizer is about to round, before it does."""
        on_grid, x = quantizer.on_grid, values.detach().float()
        if x.ndim < 2 or not x.numel():
            return
        codes = on_grid.codes(x).movedim(self.axis, 0).flatten(1)
        used = (codes != on_grid.zero_point).any(1)
        self.used = used if self.used is None else self.used | used
        at_end = codes >= on_grid.grid.code_max
        if on_grid.grid.kind != "unsigned":
            at_end |= codes <= on_grid.grid.code_min
        self.ends, self.count = self.ends + int(at_end.sum()), self.count + codes.numel()
        self.levels = on_grid.grid.qmax - on_grid.grid.qmin + 1

    def findings(self) -> list[Finding]:
        """Return what should be looked at."""
        assert self.used is not None
        channels, dead = len(self.used), int((~self.used).sum())
        if dead == channels:
            says = f"all codes of its {self.side} are 0"
            return [Finding(layer=self.owner, kind="all_zero", says=says)]
        found = []
        if dead and self.count >= SEEN * channels:
            says = f"{dead} of {channels} channels of its {self.side} are 0 for every input"
            found.append(Finding(layer=self.owner, kind="dead_channels", says=says))
        if self.levels >= LEVELS and self.ends >= SATURATED * self.count:
            says = f"{self.ends / self.count:.1%} of its {self.side} are at the ends of the grid"
            found.append(Finding(layer=self.owner, kind="saturated", says=says))
        return found

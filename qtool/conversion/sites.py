"""What becomes of the sites of a prepared model: joins in codes, values that are rounded, nothing.

Where something stands in the way of a join at this time, its function stays float, and its result
is rounded where its quantizer stood.
"""

from collections.abc import Mapping

import torch
from torch import nn

from qtool.conversion.biases import integer_bias
from qtool.conversion.norms import norm_parts
from qtool.conversion.standing import OWN_CALL, Standing
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import counts_of, install
from qtool.graph.sites.value_graph import Counts, Operation
from qtool.integer.at_site import AtSite
from qtool.integer.depthwise import IntegerNorm
from qtool.integer.joins import at_site
from qtool.integer.layers import IntegerLayer
from qtool.integer.site_specs import SiteGrid, SiteKind, SiteSpec
from qtool.limits import NO_LONGER_AFFINE, NO_LONGER_HARDSWISH, SHIFT_TOO_LARGE
from qtool.quantizers.places.placement import Join, PlacedSite

DONE_BEFORE = (*OWN_CALL, "batch_norm")  # what no longer runs once a layer rounds its output


def convert_sites(
    integer: nn.Module,
    standing: Standing,
    layers: Mapping[str, IntegerLayer],
) -> tuple[list[SiteSpec], dict[str, str]]:
    """Put into an integer model what computes at its sites; return what that is, and what is not.

    Args:
        integer: its layers are converted; changed in place.
        standing: the fake-quantized model that it was made of.
        layers: its integer layers.

    Returns:
        What stands there; and joins that stay float after all -> why.
    """
    if not standing.quantizers:
        return [], {}
    making = _Making(standing, layers)
    made = making.made()
    blocks = {name for name, _ in integer.named_modules(remove_duplicate=False)}
    install(integer, made, _counts_in(blocks, counts_of(standing.model)))
    return [stand.spec for stand in made.values()], making.left_float


def _counts_in(
    modules: set[str], counts: Mapping[str, tuple[Counts, ...]]
) -> dict[str, tuple[Counts, ...]]:
    """Return what blocks count, without what is no longer a part of the model."""
    return {
        block: tuple({pair: n for pair, n in way.items() if pair[0] in modules} for way in ways)
        for block, ways in counts.items()
        if block in modules
    }


class _Making:
    """Makes what stands at the sites of one model."""

    def __init__(self, standing: Standing, layers: Mapping[str, IntegerLayer]) -> None:
        self.standing = standing
        self.left_float: dict[str, str] = {}
        self.placement = standing.state.placement
        self.rounded = {layer.spec.output_site for layer in layers.values()} - {""}
        self.operations: dict[str, Operation] = {}
        for operation in standing.state.graph.operations:
            self.operations.setdefault(str(operation.site), operation)

    def made(self) -> dict[CallSite, AtSite]:
        """Return call -> what is to stand there."""
        joins = {join.output: join for join in self.placement.joins.values()}
        found: dict[CallSite, AtSite] = {}
        for name, placed in self.placement.sites.items():
            if name not in self.standing.quantizers:
                continue  # inference does not call it
            join = self._join(joins[name]) if name in joins else None
            if join is not None:
                found[join.spec.site] = join
            if join is not None or name in self.rounded:
                found |= {site: at_site(SiteSpec(site, "passed")) for site in self._passed(placed)}
            else:
                found[placed.site] = self._filled(placed.site, "rounded", name)
        return found

    def _passed(self, placed: PlacedSite) -> list[CallSite]:
        """Return the calls between a value's maker and its quantizer, whose work is done."""
        name, known = str(placed.site), self.operations
        between = [
            known[s].site for s, at in self.placement.absorbed.items() if at == name and s in known
        ]
        if placed.site != placed.maker and placed.site.function not in DONE_BEFORE:
            between.append(placed.site)
        return list(dict.fromkeys(site for site in between if site != placed.maker))

    def _filled(
        self, site: CallSite, kind: SiteKind, output: str, join: Join | None = None
    ) -> AtSite:
        """Return what stands at a site, with its scales."""
        standing = self.standing
        inputs = () if join is None else join.inputs
        spec = SiteSpec(
            site,
            kind,
            standing.grid(output),
            tuple(_as_read(standing.grid(name)) for name in inputs),
            "" if join is None else join.norm,
            {} if join is None else self._facts(join),
        )
        made = at_site(spec).to(standing.quantizers[output].scale.device)
        scale, zero = standing.scale_and_zero(output)
        made.scale.copy_(scale)
        made.zero_point.copy_(zero)
        for place, name in enumerate(inputs):
            scale, zero = standing.scale_and_zero(name)
            made.input_scales[place] = scale
            made.input_zero_points[place] = zero
        return made.eval()

    def _facts(self, join: Join) -> dict[str, object]:
        """Return the facts of a join, and the number of channels where it has weights."""
        facts = {name: list(f) if isinstance(f, tuple) else f for name, f in join.facts.items()}
        if join.kind == "depthwise":
            shape = self.operations[str(join.site)].shapes[0]
            facts["channels"] = shape[1]
            if join.norm and len(shape) != 4:
                facts["dimensions"] = len(shape) - 2
        return facts

    def _join(self, join: Join) -> AtSite | None:
        """Return a join with its tensors; None where its function stays float."""
        missing = [name for name in join.inputs if name not in self.standing.quantizers]
        if missing:  # what it reads is not computed in inference, nor is it
            return None
        made = self._filled(join.site, join.kind, join.output, join)
        why = ""
        if isinstance(made, IntegerNorm):
            why = self._fill_norm(made, join)
        elif join.kind == "hardswish":
            scale, zero = made.input_scales[0], made.input_zero_points[0]
            if not torch.equal(scale, 3 / zero):
                why = NO_LONGER_HARDSWISH.text(site=join.inputs[0])
        if why:
            self.left_float[str(join.site)] = why
        return None if why else made

    def _fill_norm(self, made: IntegerNorm, join: Join) -> str:
        """Fill in what a norm is as a depthwise convolution; return why it is none, or ""."""
        given, operation = made.inputs[0], self.operations[str(join.site)]
        exact = norm_parts(self.standing.model, join, operation, given)
        if exact is None:
            return NO_LONGER_AFFINE.text(layer=join.norm)
        parts = integer_bias(exact, given, notes=[])
        if parts.spec.bias != "int32" or parts.bias is None:
            return SHIFT_TOO_LARGE.text()
        made.codes.copy_(parts.codes.flatten())
        made.weight_scale.copy_(parts.scale)
        made.bias.copy_(parts.bias)
        return ""


def _as_read(grid: SiteGrid) -> SiteGrid:
    """Return the grid of a value that lies on it already: nothing is rounded up or clipped."""
    return SiteGrid(grid.site, grid.bits, grid.grid)

"""The decisions about the values of a model, made part of it: quantizers at its sites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from qtool.graph.inputs import device_of
from qtool.graph.norms import channel_norms
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import INPUT, call_sites_of, counts_of, install, sites_of
from qtool.graph.sites.functions import passes_on
from qtool.graph.sites.value_graph import Counts, ValueGraph
from qtool.graph.values import Value
from qtool.quantizers.door.modes import Seen, bypassed
from qtool.quantizers.layers import plain_type
from qtool.quantizers.places.placement import PlacedSite, Placement
from qtool.quantizers.places.rules import place
from qtool.quantizers.places.wanted import wants_of
from qtool.quantizers.sites import SharedSite, SiteQuantizer, quantizer_of
from qtool.settings.quantization import Quantization

Stand = SiteQuantizer | SharedSite


@dataclass(frozen=True)
class Placing:
    """Quantizers for the values of a model, before they stand there.

    Attributes:
        placement: the decisions.
        graph: of values, that they were taken from.
        stands: call -> what is to stand there.
        sources: layer -> the quantizer of what it reads, where it does not round that again.
        ways: block -> what one of its calls may count, in evaluation or in training.
    """

    placement: Placement = field(default_factory=Placement)
    graph: ValueGraph = field(default_factory=ValueGraph)
    stands: Mapping[CallSite, Stand] = field(default_factory=dict)
    sources: Mapping[str, SiteQuantizer] = field(default_factory=dict)
    ways: Mapping[str, tuple[Counts, ...]] = field(default_factory=dict)

    def attach(self, model: nn.Module) -> None:
        """Let the quantizers stand at the calls of a model whose layers have quantized types."""
        if self.stands:
            install(model, self.stands, self.ways)


def place_quantizers(
    model: nn.Module,
    settings: Quantization,
    seen: list[Seen],
    given: Quantization | None = None,
) -> Placing:
    """Decide where the quantizers of a float model stand, and make those; nothing is changed.

    What the model does in evaluation mode decides. Layers that only training calls are no part of
    it, and have quantizers of their own; what training calls otherwise is a way to be counted.

    Args:
        model: float.
        settings: what is to be quantized.
        seen: what the model does in its modes, evaluation first.
        given: the settings as the recipe says them, which may leave ranges open.
    """
    graphs = [one.values for one in seen if one.values is not None]
    if not graphs:
        return Placing()
    told = seen[0].recording
    names = [name for name, module in model.named_modules() if plain_type(module)]
    past = bypassed(seen)
    wants = wants_of(settings, [name for name in names if name not in past], given)
    foldable = set(told.batch_norms.values())
    placement = place(graphs[0], settings, wants, foldable, channel_norms(model, told))
    stands = make_stands(placement, device_of(model))
    for site in overwritten(graphs):
        if (stand := stands.get(site)) is not None:
            quantizer_of(stand).overwritten = True
    mark_unkept(placement, stands)
    for site, stand in stands.items():
        stand.train(model.get_submodule(site.block).training)
    by_name = {str(site): stand for site, stand in stands.items()}
    sources = {
        layer: quantizer_of(by_name[site])
        for layer, site in placement.layers.items()
        if layer not in placement.requantized
    }
    return Placing(placement, graphs[0], stands, sources, ways_of(graphs))


def make_stands(placement: Placement, device: torch.device | None) -> dict[CallSite, Stand]:
    """Return what is to stand at the sites of a model: a quantizer for each value, or group."""
    groups: dict[CallSite, list[PlacedSite]] = {}
    for placed in placement.sites.values():
        groups.setdefault(placed.group or placed.site, []).append(placed)
    made: dict[CallSite, Stand] = {}
    for leader, members in groups.items():
        own = placement.sites[str(leader)]
        others = [placed for placed in members if placed.site != leader]
        quantizer = SiteQuantizer(
            own.settings,
            leader.function,
            own.form,
            top=own.top,
            members=(str(leader), *(str(placed.site) for placed in others)),
            joins=str(leader) in placement.joins,
        )
        quantizer.about = about(placement, own)
        made[leader] = quantizer.to(device)
        for placed in others:
            name = str(placed.site)
            shared = SharedSite(
                quantizer,
                placed.site.function,
                name,
                top=placed.top,
                joins=name in placement.joins,
            )
            shared.about = about(placement, placed)
            made[placed.site] = shared.to(device)
    return {placed.site: made[placed.site] for placed in placement.sites.values()}


def about(placement: Placement, placed: PlacedSite) -> str:
    """Return what makes a value and who reads it, for `print(model)`."""
    return f"of {placement.made_by(str(placed.site))}, for {', '.join(placed.readers) or 'others'}"


def mark_unkept(placement: Placement, stands: Mapping[CallSite, Stand]) -> None:
    """Tell quantizers of values that are only added up: a sum keeps nothing of what it is made of.

    What a layer, a product or a pooling reads it keeps for its own backward pass.
    """
    sums = {name for name, join in placement.joins.items() if join.kind == "add"}
    for quantizer in {quantizer_of(stand) for stand in stands.values()}:
        readers = [placement.sites[member].readers for member in quantizer.members]
        quantizer.unkept = all(own and sums.issuperset(own) for own in readers)


def ways_of(graphs: Sequence[ValueGraph]) -> dict[str, tuple[Counts, ...]]:
    """Return block -> what one of its calls may count, in any of several passes."""
    found: dict[str, list[Counts]] = {}
    for graph in graphs:
        for block, ways in graph.counts.items():
            known = found.setdefault(block, [])
            known += [way for way in ways if way not in known]
    return {block: tuple(ways) for block, ways in found.items()}


def overwritten(graphs: Sequence[ValueGraph]) -> set[CallSite]:
    """Return the calls whose results are written to in place, themselves or through a view."""
    found: set[CallSite] = set()
    for graph in graphs:
        made_at: dict[Value, CallSite] = {}
        for number, value in enumerate(graph.inputs):
            made_at[value] = CallSite("", INPUT, number)
        for operation in graph.operations:
            read = {made_at[value] for value in operation.reads if value in made_at}
            if operation.in_place:
                found |= read
            views = passes_on(operation.function, operation.facts)
            origin = next(iter(read)) if views and len(read) == 1 else operation.site
            made_at |= dict.fromkeys(operation.makes, origin)
    return found


def stand_again(model: nn.Module) -> None:
    """Let what stands at the calls of a model go on standing there, once layers changed types."""
    found, sites = sites_of(model), call_sites_of(model)
    if sites:
        install(model, {site: found[name] for name, site in sites.items()}, counts_of(model))

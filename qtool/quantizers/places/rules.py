"""Where quantizers stand with place: every_value, by rules on the graph of values alone.

Every value that something in integers reads gets one quantizer, where it is made, and so does what
a convolution makes that computes in integers. qtool/quantizers/README.md lists the rules.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from qtool.graph.sites.functions import LAYERS
from qtool.graph.sites.value_graph import ValueGraph
from qtool.limits import JOIN_CHOSEN
from qtool.problems import report
from qtool.quantizers.places.chains import RECTIFIERS, Chains, is_passed_on
from qtool.quantizers.places.groups import grouped
from qtool.quantizers.places.integers import JOINS, Integers
from qtool.quantizers.places.placement import Join, Placement
from qtool.quantizers.places.values import SitedValues
from qtool.quantizers.places.wanted import LayerWants, Wanted, pattern_problems
from qtool.settings.quantization import Quantization


def place(
    graph: ValueGraph,
    settings: Quantization,
    layers: Mapping[str, LayerWants],
    foldable_norms: Collection[str] = (),
    channel_norms: Collection[str] = (),
) -> Placement:
    """Return what is decided for the values of a network.

    Args:
        graph: of a float model in evaluation mode.
        settings: what overrides say of sites, and what applies where no layer reads a value.
        layers: what each layer is to have that is not float, as `wants_of` tells it.
        foldable_norms: names of norms that are folded into the layer before them.
        channel_norms: names of norms that are a gain and a shift of each channel in evaluation
            mode, whether they are folded or not.

    Raises:
        ModelError: If layers, or members of a group, want different things of a value, or an
            override wants what the value cannot have.
        RecipeError: If an override names a site that there is none of, or does not go with what it
            inherits.
    """
    wanted = Wanted(settings, layers)
    if not wanted.at_values:
        return Placement()
    chains = Chains(graph, layers, foldable_norms)
    integers = Integers(chains, wanted, channel_norms)
    values = SitedValues(chains, integers, wanted)
    placed = grouped(chains, integers, values)
    covered = {site for end in placed for site in chains.of(end)}
    if found := pattern_problems(settings, chains.sites, covered):
        raise report("quantization", found)
    read = {layer: site for layer, site in values.read.items() if site in placed}
    wants = {s: replace(values.wants[s], settings=made.settings) for s, made in placed.items()}
    told = {
        join: integers.reasons[join]
        for join in chains.chain
        if join in integers.reasons and chains.first(join).function not in RECTIFIERS
    }
    outputs = dict(_outputs(chains, integers, placed))
    return Placement(
        sites=placed,
        joins={join: _join(join, chains, integers) for join in integers.joins},
        layers=read,
        requantized=frozenset(
            layer
            for layer, site in read.items()
            if wanted.requantizes(layer, placed[site].use, wants[site])
        ),
        outputs=outputs,
        absorbed=dict(_absorbed(chains, integers, placed, outputs)),
        repeats=dict(_repeats(chains, placed)),
        float_joins={join: limit.text(**words) for join, (limit, words) in told.items()},
        advice={join: limit.do.format(**words) for join, (limit, words) in told.items()},
        without_quantizer=dict(_without_quantizer(chains, integers)),
    )


def _join(join: str, chains: Chains, integers: Integers) -> Join:
    call, inputs = chains.first(join), chains.sources(join)[0]
    kind, norm, facts = integers.kind(join), "", dict(call.facts)
    if call.function == "batch_norm":
        norm, facts = call.site.leaf, {**facts, "channels": call.shapes[0][1]}
    operands = tuple(source for source in inputs if source is not None)
    return Join(call.site, kind, operands, chains.end(join), norm, facts)


def _outputs(
    chains: Chains, integers: Integers, placed: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield layers that compute in integers, and the one site that rounds what they make."""
    for layer, sites in chains.layer_sites.items():
        end, *others = {chains.end(site) for site in sites}
        if not others and end in placed and integers.is_integer_layer(chains.first(sites[0])):
            yield layer, end


def _absorbed(
    chains: Chains, integers: Integers, placed: Collection[str], outputs: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield what a quantizer leaves nothing to do, and where that is."""
    for end in placed:
        head, *rest = chains.of(end)
        integer = head in integers.joins or end in outputs.values()
        for site in rest:
            call = chains.first(site)
            if chains.is_norm(call):
                yield call.site.leaf, end
            elif integer:
                yield site, end


def _repeats(chains: Chains, placed: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield operators that pass a value on, and the site whose grid it lies on."""
    returned = set(chains.graph.outputs)
    for site, calls in chains.calls.items():
        if not is_passed_on(calls[0]) or any(c.lost or returned & set(c.makes) for c in calls):
            continue
        source, *others = {chains.source(call.reads[0]) if call.reads else None for call in calls}
        if not others and source is not None and source in placed:
            yield site, source


def _without_quantizer(chains: Chains, integers: Integers) -> Iterator[tuple[str, str]]:
    """Yield values that something in integers could read, and why they are left float."""
    for end, (limit, words) in integers.values_left.items():
        calls, _ = chains.readers(end)
        might_read = any(c.function in (*LAYERS, *JOINS) for c in calls)
        if might_read or limit is JOIN_CHOSEN:
            yield end, limit.text(**words)

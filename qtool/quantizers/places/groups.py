"""Groups of values that share a grid: what is concatenated, and the concatenation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from qtool.limits import GROUP_DISAGREES
from qtool.quantizers.places.chains import Chains
from qtool.quantizers.places.integers import Integers
from qtool.quantizers.places.placement import PlacedSite
from qtool.quantizers.places.values import SitedValues
from qtool.quantizers.places.wanted import difference
from qtool.settings.tensors import ActivationQuantization


def grouped(chains: Chains, integers: Integers, values: SitedValues) -> dict[str, PlacedSite]:
    """Return all placed sites, those of a concatenation's operands and result with one grid.

    What a sigmoid makes stays outside: its grid is fixed, and it is rounded to that of the result.

    Raises:
        ModelError: If overrides want different things of members.
    """
    placed = dict(values.placed)
    for members in _groups(chains, integers, placed):
        leader = _leader(members, chains, values)
        settings = _settings(members, leader, values)
        for site in members:
            placed[site] = replace(placed[site], settings=settings, group=placed[leader].site)
    return placed


def _groups(
    chains: Chains, integers: Integers, placed: dict[str, PlacedSite]
) -> Iterator[list[str]]:
    """Yield the sites of each group, in the order of the pass."""
    group_of: dict[str, list[str]] = {}
    for join in integers.joins:
        if integers.kind(join) != "cat":
            continue
        operands = [s for s in chains.sources(join)[0] if s and placed[s].form != "unit"]
        for site in (*operands, chains.end(join)):
            first, second = (group_of.setdefault(s, [s]) for s in (chains.end(join), site))
            if first is not second:
                first += second
                group_of |= dict.fromkeys(second, first)
    order = {site: place for place, site in enumerate(placed)}
    for members in {id(group): group for group in group_of.values()}.values():
        yield sorted(members, key=order.__getitem__)


def _leader(members: Sequence[str], chains: Chains, values: SitedValues) -> str:
    """Return the member whose quantizer serves all: the first that takes all their values."""
    all_positive = all(map(values.is_positive, members))

    def narrowness(site: str) -> tuple[bool, bool, bool]:
        one = values.placed[site]
        below_0 = one.form == "rectified" and not all_positive
        joined = site in chains.calls and chains.first(site).function == "cat"
        return below_0, joined, one.top is not None

    return min(members, key=narrowness)


def _settings(members: Sequence[str], leader: str, values: SitedValues) -> ActivationQuantization:
    """Return the settings that all members have."""
    settings = values.placed[leader].settings
    grid = "unsigned" if all(map(values.is_positive, members)) else settings.grid
    said = {site: values.wants[site] for site in members if values.wants[site].by_site}
    if not said:
        bits = max(values.placed[site].settings.bits for site in members)
        return settings.model_copy(update={"bits": bits, "grid": grid})
    first, wants = next(iter(said.items()))
    chosen = wants.settings.model_copy(update={"grid": grid})
    for other, differing in said.items():
        if (made := differing.settings.model_copy(update={"grid": grid})) != chosen:
            how = difference(chosen, made)
            raise GROUP_DISAGREES.error(site=first, other=other, how=how)
    return chosen

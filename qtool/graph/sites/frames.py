"""Modules at numbered calls of a model's blocks: installed, found, and taken away again.

The classes of blocks, and of leaves whose calls are told apart, are swapped for subclasses whose
forward says that it runs, see `qtool.graph.sites.running`. Copies and pickles carry all of it.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from qtool import limits
from qtool.graph.sites.call_sites import CallSite, is_block, is_dropout, is_leaf
from qtool.graph.sites.counted import BlockCalls, Pair
from qtool.graph.sites.running import CALLS, SITES
from qtool.graph.sites.swapped_classes import class_of, swap_block, swap_leaf, swap_other
from qtool.graph.sites.value_graph import Counts
from qtool.graph.swap import Part

INPUT = "input"  # the function of a site at an input of the model
_INSTALLED = "qtool_installed"  # what install was given, kept on the model


class Sites(nn.ModuleDict):
    """What stands at the sites of a block, by function and number."""

    def forward(self, input: object) -> object:
        """Return the argument, for a block that runs all of its children one after another."""
        return input


@dataclass(frozen=True)
class _Installed:
    """What `install` was given, but for the modules."""

    sites: tuple[CallSite, ...]
    counts: Mapping[str, tuple[Counts, ...]]


def install(
    model: nn.Module, sites: Mapping[CallSite, nn.Module], counts: Mapping[str, tuple[Counts, ...]]
) -> None:
    """Put modules at calls of a model's blocks, in the place of those that stand there.

    Args:
        model: changed in place; state_dict names of what stands there are BLOCK.sites.FUNCTIONn.
        sites: call -> what stands there, an `AtSite`; input is the function of an input of the
            model, and the number which of its tensors that is.
        counts: block -> what one of its calls may count, as the graph of values has it.

    Raises:
        ModelError: If a block has an attribute `sites` of its own, or a class has no subclass.
    """
    uninstall(model)
    walked = list(_walk(model))
    blocks = {name: module for name, module, block in walked if block == name}
    dropouts = [(block, name) for name, module, block in walked if is_dropout(module)]
    of_block: dict[str, list[CallSite]] = {name: [] for name in blocks}
    for site in sites:
        of_block[site.block].append(site)
    for name, block in blocks.items():
        if of_block[name] and hasattr(block, SITES):
            raise limits.TAKEN_SITES.error(block=name or type(block).__name__)
    for name, block in blocks.items():
        here, ways = of_block[name], counts.get(name, ())
        drops = frozenset(leaf for at, leaf in dropouts if at == name) if here else frozenset()
        calls = _calls_of(name, block, here, ways, drops)
        swap_block(name, block)
        vars(block)[CALLS] = calls
        if here:
            at_sites = Sites({site.key: sites[site] for site in here})
            block.add_module(SITES, at_sites.train(block.training))
        leaves = {leaf for way in calls.ways for leaf, _ in way if leaf} | calls.dropouts
        for leaf in sorted(leaves):
            module = model.get_submodule(leaf)
            if not isinstance(module, Part):
                swap_leaf(leaf, module)
            vars(module)[CALLS] = leaf
    for name, module, _ in walked if sites else ():
        if not isinstance(module, Part):
            swap_other(name, module)
    vars(model)[_INSTALLED] = _Installed(tuple(sites), dict(counts))


def uninstall(model: nn.Module) -> None:
    """Take away what stands at a model's calls, and give its modules their classes back."""
    vars(model).pop(_INSTALLED, None)
    for module in list(model.modules()):
        known = vars(module).pop(CALLS, None)
        if known is not None and isinstance(module._modules.get(SITES), Sites):
            del module._modules[SITES]
        module.__class__ = class_of(module)


def call_sites_of(model: nn.Module) -> dict[str, CallSite]:
    """Return the calls at which something stands, by the way they are written."""
    installed: object = vars(model).get(_INSTALLED)
    if not isinstance(installed, _Installed):
        return {}
    return {str(site): site for site in installed.sites}


def counts_of(model: nn.Module) -> Mapping[str, tuple[Counts, ...]]:
    """Return block -> what one of its calls may count, as `install` was given it."""
    installed: object = vars(model).get(_INSTALLED)
    return installed.counts if isinstance(installed, _Installed) else {}


def sites_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return what stands at a model's calls, by the way these are written."""
    return {
        written: model.get_submodule(f"{site.block}.{SITES}.{site.key}".lstrip("."))
        for written, site in call_sites_of(model).items()
    }


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a model by name, the model itself among them, each once.

    What qtool put into a model is no block, nor is anything inside of that.
    """
    return {name: module for name, module, block in _walk(model) if block == name}


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield names and modules, each once, with the block whose calls the module's are."""
    seen: set[nn.Module] = set()

    def inside(module: nn.Module, name: str, block: str) -> Iterator[tuple[str, nn.Module, str]]:
        if module in seen or isinstance(module, Sites):
            return
        seen.add(module)
        opaque = name != "" and (isinstance(module, Part) or is_leaf(module))
        if not opaque and is_block(module):
            block = name
        yield name, module, block
        for key, child in () if opaque else module.named_children():
            yield from inside(child, f"{name}.{key}".lstrip("."), block)

    return inside(model, "", "")


def _calls_of(
    name: str,
    block: nn.Module,
    sites: list[CallSite],
    ways: tuple[Counts, ...],
    dropouts: frozenset[str],
) -> BlockCalls:
    """Return what a block has to know to count its calls."""
    functions = frozenset(site.function for site in sites) - {INPUT}
    keys: dict[Pair, dict[int, str]] = {}
    for site in sites:
        if site.function != INPUT:
            keys.setdefault((site.leaf, site.function), {})[site.call] = site.key
    counted = [{pair: n for pair, n in way.items() if pair[1] in functions} for way in ways]
    given = {site.number: site.key for site in sites if site.function == INPUT}
    return BlockCalls(
        block=name,
        type=type(block).__name__,
        functions=functions,
        keys=keys,
        ways=tuple(counted),
        dropouts=dropouts,
        inputs=given,
        arguments=tuple(inspect.signature(block.forward).parameters) if given else (),
    )

"""The parts of a network whose outputs are reconstructed: residual blocks, and layers beside them.

A block is a module in whose own calls values join, by an addition, product or concatenation, and
every module of the same class: those of a network that have no join are blocks like the others. It
is called once, takes one tensor and makes one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.graph.sites.swapped_classes import class_of
from qtool.graph.sites.value_graph import ValueGraph

JOINS = ("add", "mul", "cat")
MOST_LAYERS = 10  # of a block: a stage of many is reconstructed by the blocks inside it


@dataclass(frozen=True)
class Block:
    """A part of a network.

    Attributes:
        name: of the module.
        layers: its quantized layers, in the order of their calls; itself where it is a layer.
    """

    name: str
    layers: tuple[str, ...]

    @property
    def is_layer(self) -> bool:
        """Tell whether it is a single layer that stands in no block."""
        return self.layers == (self.name,)


def blocks_in(
    model: nn.Module, calls: Mapping[str, int], graph: ValueGraph, batch: Inputs
) -> list[Block]:
    """Return the parts of a network in the order of a pass; each layer is in one of them.

    Args:
        model: prepared, in evaluation.
        calls: layer -> how often a pass calls it, in order.
        graph: of the model's values; empty where quantizers stand at layers or ReLUs, and there
            are no blocks.
        batch: of a pass.
    """
    joining = {
        operation.site.block
        for operation in graph.operations
        if operation.function in JOINS and len(operation.reads) > 1 and operation.site.block
    }
    kinds = {class_of(model.get_submodule(name)) for name in joining}
    candidates = [n for n, m in model.named_modules() if n and class_of(m) in kinds]
    alone = _called_alone(model, candidates, batch)
    owner: dict[str, str] = {}
    for name in candidates:  # the outer before the inner
        inside = [layer for layer in calls if layer.startswith(f"{name}.")]
        once = all(calls[layer] == 1 for layer in inside)
        if name in alone and once and 1 < len(inside) <= MOST_LAYERS:
            for layer in inside:
                owner.setdefault(layer, name)
    found: dict[str, list[str]] = {}
    for layer in calls:
        found.setdefault(owner.get(layer, layer), []).append(layer)
    return [Block(name, tuple(layers)) for name, layers in found.items()]


def _called_alone(model: nn.Module, names: list[str], batch: Inputs) -> set[str]:
    """Return the modules that a pass calls once, with one tensor and nothing else, for one."""
    seen: dict[str, list[bool]] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(
            module: nn.Module, args: tuple[object, ...], kwargs: object, output: object
        ) -> None:
            x = args[0] if len(args) == 1 and not kwargs else None
            if isinstance(x, Tensor) and isinstance(output, Tensor):
                seen.setdefault(name, []).append(len(x) == len(output))
            else:
                seen.setdefault(name, []).append(False)

        return look

    handles = [
        model.get_submodule(n).register_forward_hook(hook(n), with_kwargs=True) for n in names
    ]
    try:
        with torch.no_grad():
            batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, calls in seen.items() if calls == [True]}

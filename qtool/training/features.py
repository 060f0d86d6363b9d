"""What blocks of a network return in a pass, and which blocks two networks have in common.

A block is a module with modules of its own that stands in a list of such (nn.Sequential or
nn.ModuleList), the outermost one: layer1.0 of a ResNet, features.3 of a MobileNet. A network
without any is made of its convolutions and linear layers, but for the last one.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from qtool.graph.sites.running import apart

LISTS = (nn.Sequential, nn.ModuleList)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def block_names(network: nn.Module) -> list[str]:
    """Return the names of a float network's blocks, in its own order."""
    found = list(_blocks(network, ""))
    if found:
        return found
    layers = [name for name, module in network.named_modules() if isinstance(module, LAYERS)]
    return layers[:-1]


def _blocks(module: nn.Module, prefix: str) -> Generator[str]:
    for name, child in module.named_children():
        if isinstance(module, LISTS) and any(child.children()):
            yield prefix + name
        else:
            yield from _blocks(child, f"{prefix}{name}.")


class Outputs:
    """What modules return, by their names, in the last pass inside `watching`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.seen: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, network: nn.Module) -> Generator[None]:
        """Note what a network's modules return while inside; with gradients, where they have any.

        It is a copy, as what comes next may compute in place with what they return.
        """
        self.seen = {}
        handles = [
            network.get_submodule(name).register_forward_hook(_Note(self.seen, name))
            for name in self.names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Note:
    """A forward hook that keeps a copy of what its module returns."""

    def __init__(self, seen: dict[str, Tensor], name: str) -> None:
        self.seen, self.name = seen, name

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            self.seen[self.name] = apart(output.clone)

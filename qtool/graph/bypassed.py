"""Parts that are read past their module: a model that takes a layer's weight and computes itself.

Fast paths of torch.nn.TransformerEncoderLayer and others do so in evaluation mode only, and only
where no module has a hook and no function mode is active. So operators are watched where they are
dispatched, and modules by hooks that belong to none of them.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qtool.graph.by_function import layers_called_so
from qtool.graph.inputs import Inputs, tensors_in
from qtool.graph.running_modules import RunningModules


class _Readers(TorchDispatchMode):
    """Notes which of a model's tensors are read while no module that holds them runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = RunningModules(model)
        self.holders: dict[int, list[nn.Module]] = {}
        called = layers_called_so(model)
        for module in self.modules.names:
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if module in called:  # blocks may look at the bias of such a layer
                tensors = [module.get_parameter("weight")]
            for tensor in tensors:
                self.holders.setdefault(id(tensor), []).append(module)
        self.past: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operator, and note what it reads past the modules that hold it."""
        for tensor in tensors_in((args, kwargs or {})):
            holders = self.holders.get(id(tensor), [])
            if holders and not any(module in self.modules.running for module in holders):
                self.past.update(self.modules.names[module] for module in holders)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def read_past_modules(model: nn.Module, inputs: Inputs) -> set[str]:
    """Run a model, and return the modules whose parameters or buffers it read past them.

    That is, while neither the module ran nor another that holds the same tensor.
    """
    readers = _Readers(model)
    with readers.modules.watching(), readers:
        inputs.call(model)
    return readers.past

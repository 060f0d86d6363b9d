"""Which modules of a model run: seen by hooks of all modules, none of which belongs to the model.

Fast paths of torch are taken only where no module has a hook of its own, so that one would change
what is to be seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class RunningModules:
    """The modules of a model that run now.

    Attributes:
        names: of all of its modules.
        running: those that run, the innermost last.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.running: list[nn.Module] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the passes that the model makes meanwhile."""
        handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        try:
            yield
        finally:
            self.running.clear()
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, args: object) -> None:
        if module in self.names:
            self.running.append(module)

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        if module in self.running:
            while self.running.pop() is not module:
                pass

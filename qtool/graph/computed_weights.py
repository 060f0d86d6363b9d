"""Layers of a subclass that compute with another weight than their own: standardized, say.

What a subclass of torch's layers does is seen in passes of the model: a function of layers that it
calls is given the parameter `weight`, or a tensor that was made of it.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qtool.graph.running_modules import RunningModules
from qtool.graph.sites.functions import LAYERS, argument, function_of


@dataclass
class _Weights(TorchFunctionMode):
    """Notes which of some layers give a function of layers a weight that is not theirs.

    Attributes:
        model: whose passes are looked at.
        layers: names of those that are looked for.
        found: those that do, and the functions that they call.
    """

    model: nn.Module
    layers: Collection[str]
    found: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.modules = RunningModules(self.model)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, and note what weight it is given."""
        kwargs = kwargs or {}
        function = function_of(func, args, kwargs)
        if function in LAYERS and self.modules.running:
            user, weight = self.modules.running[-1], argument(args, kwargs, 1, "weight")
            name = self.modules.names[user]
            if name in self.layers and isinstance(weight, Tensor) and weight is not user.weight:
                self.found[name] = function
        return func(*args, **kwargs)


def find_computed_weights(
    model: nn.Module, layers: Collection[str], passes: Iterable[Callable[[], object]]
) -> dict[str, str]:
    """Return the layers that compute their weight in each pass -> the function it is given to.

    Args:
        model: whose layers are looked at.
        layers: names of those that are looked for, each with a parameter `weight`.
        passes: each makes a pass of the model; one that fails tells nothing.
    """
    weights = _Weights(model, layers)
    for make in passes:
        # whatever a model raises in a mode that it is not made for
        with weights.modules.watching(), weights, torch.no_grad(), suppress(Exception):
            make()
    return weights.found

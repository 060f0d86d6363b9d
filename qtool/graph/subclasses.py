"""Layers of a subclass: those that do what the plain layer does, and those with another weight.

What a subclass of torch's layers does is seen in passes of the model: a function of layers that it
calls is given the parameter `weight`, or a tensor that was made of it, a standardized one, say.
Where that tensor is made of parameters alone, and all else is what the plain layer does, the layer
is one with a weight that is made anew in each pass.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from qtool.graph.running_modules import RunningModules
from qtool.graph.sites.functions import LAYERS, argument, function_of


@dataclass(frozen=True)
class Given:
    """A call of a function of layers.

    Attributes:
        function: its name.
        args: input, weight, bias, and for convolutions stride, padding, dilation and groups.
        made: what it returned.
    """

    function: str
    args: tuple[object, ...]
    made: object


class _Found(Exception):  # noqa: N818  no error: it ends a forward whose weight is known
    """Carries the weight that a layer gives to its function."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


class _Capture(TorchFunctionMode):
    """Ends a forward where a function of layers is called."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, unless it is one of layers."""
        kwargs = kwargs or {}
        if function_of(func, args, kwargs) in LAYERS:
            weight = argument(args, kwargs, 1, "weight")
            assert isinstance(weight, Tensor)
            raise _Found(weight)
        return func(*args, **kwargs)


def weight_computed_by(layer: nn.Module, forward: Callable[..., object]) -> Tensor:
    """Return the weight that a layer's forward makes, whatever the layer is given.

    Raises:
        RuntimeError: If it calls no function of layers.
    """
    own = layer.get_parameter("weight")
    size = [1, own.shape[1] * getattr(layer, "groups", 1), *own.shape[2:]]
    try:
        with _Capture():
            forward(layer, torch.zeros(size, dtype=own.dtype, device=own.device))
    except _Found as found:
        return found.weight
    raise RuntimeError(f"{type(layer).__name__} calls no function of layers")


@dataclass
class _Weights(TorchFunctionMode):
    """Notes what some layers give to functions of layers.

    Attributes:
        model: whose passes are looked at.
        layers: names of those that are looked for.
        calls: of the layer that runs.
        found: layers that give a weight that is not theirs -> the function that they give it to.
        plain: layers that did what the plain layer does with the weight that they gave.
        others: layers that did more, or less, at any time.
    """

    model: nn.Module
    layers: Collection[str]
    calls: list[Given] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.modules = RunningModules(self.model)
        self.wanted = {self.model.get_submodule(name): name for name in self.layers}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, and note what it is given."""
        kwargs = kwargs or {}
        made, function = func(*args, **kwargs), function_of(func, args, kwargs)
        if function in LAYERS and self.modules.running and self.modules.running[-1] in self.wanted:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = tuple(argument(args, kwargs, n, name) for n, name in enumerate(names))
            self.calls.append(Given(function, given, made))
        return made

    def begin(self, module: nn.Module, args: object) -> None:
        """Forget the calls of the layer before."""
        if module in self.wanted:
            self.calls.clear()

    def end(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        """Judge what a layer did."""
        if module not in self.wanted:
            return
        name, calls = self.wanted[module], list(self.calls)
        self.calls.clear()
        for call in calls:
            if isinstance(call.args[1], Tensor) and call.args[1] is not module.weight:
                self.found[name] = call.function
        plain = len(calls) == 1 and _is_plain(module, calls[0], args, output)
        (self.plain if plain else self.others).add(name)


def _is_plain(layer: nn.Module, call: Given, args: tuple[object, ...], output: object) -> bool:
    """Tell whether a layer did what the plain one does, but for who makes its weight."""
    x, weight, bias, *more = call.args
    if len(args) != 1 or x is not args[0] or output is not call.made or bias is not layer.bias:
        return False
    if not isinstance(weight, Tensor) or weight.shape != layer.weight.shape:
        return False
    if isinstance(layer, nn.modules.conv._ConvNd):
        own = (layer.stride, layer.padding, layer.dilation, layer.groups)
        same = map(_are_same, more, own, (1, 0, 1, 1))
        if layer.transposed or layer.padding_mode != "zeros" or not all(same):
            return False
    # of an input of zeros it is the same: it is made of parameters alone
    return torch.equal(weight, weight_computed_by(layer, type(layer).forward))


def _are_same(given: object, own: object, default: int) -> bool:
    """Tell whether an argument, None where it is not given, is a layer's own."""
    value = default if given is None else given
    if isinstance(own, tuple) and isinstance(value, int):
        value = (value,) * len(own)
    return (tuple(value) if isinstance(value, list) else value) == own


def look_at_subclasses(
    model: nn.Module, layers: Collection[str], passes: Iterable[Callable[[], object]]
) -> tuple[dict[str, str], set[str]]:
    """Return the layers that compute their weight in each pass -> the function it is given to.

    Args:
        model: whose layers are looked at.
        layers: names of those that are looked for, each with a parameter `weight`.
        passes: each makes a pass of the model; one that fails tells nothing.

    Returns:
        And the layers, those among them or not, that are otherwise what the plain layer is.
    """
    weights = _Weights(model, layers)
    handles = [
        register_module_forward_pre_hook(weights.begin),
        register_module_forward_hook(weights.end),
    ]
    try:
        for make in passes:
            # whatever a model raises in a mode that it is not made for
            with weights.modules.watching(), weights, torch.no_grad(), suppress(Exception):
                make()
    finally:
        for handle in handles:
            handle.remove()
    return weights.found, weights.plain - weights.others

"""Layers that a block uses by function: F.linear(x, self.qkv.weight, self.qkv.bias).

Such a block is changed so that it calls the layer: the class of the block is swapped for a subclass
whose forward runs under a mode, which does that where F.linear is given the layer's weight. What a
swapped block does is found in passes of the model, and is kept by the names of the layers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qtool.graph.calling import run_under
from qtool.graph.running_modules import RunningModules
from qtool.graph.sites.functions import argument
from qtool.graph.swap import GIVEN_BY

_LAYERS = "qtool_layers_by_function"  # names of them in the block, among its attributes


class _Calls(TorchFunctionMode):
    """Calls a layer where F.linear is given its weight."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = layers

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, or a layer in its place."""
        kwargs = kwargs or {}
        if func is F.linear:
            weight = argument(args, kwargs, 1, "weight")
            for layer in self.layers:
                if _is_weight_of(layer, weight):
                    given = argument(args, kwargs, 0, "input")
                    return _with_bias(layer, layer(given), argument(args, kwargs, 2, "bias"))
        return func(*args, **kwargs)


def _is_weight_of(layer: nn.Module, weight: object) -> bool:
    """Tell whether a weight is a layer's own, or one that an integer layer has computed."""
    maker: object = getattr(weight, GIVEN_BY, None)
    if maker is not None:
        return maker is layer
    held = [*layer._parameters.values(), *layer._buffers.values()]
    return any(weight is tensor for tensor in held if tensor is not None)


def _with_bias(layer: nn.Module, output: Tensor, bias: object) -> Tensor:
    """Return a layer's output with the bias that it was to have.

    That has the values of the layer's own, and may have other gradients: part of it may be held at
    zero. An integer layer keeps its own.
    """
    own: object = layer.bias
    if bias is own or not isinstance(bias, Tensor) or not isinstance(own, nn.Parameter):
        return output
    return output + (bias - own)


@dataclass
class _Uses(TorchFunctionMode):
    """Notes which linear layers are used by F.linear alone, and by whom.

    Attributes:
        model: whose passes are looked at.
        layers: names of the layers that are looked for.
        users: layer -> blocks that use it so.
        others: layers that are called, or used with a bias of other values.
    """

    model: nn.Module
    layers: Collection[str]
    users: dict[str, set[str]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.modules = RunningModules(self.model)
        self.of_weight = {id(self.model.get_submodule(n).weight): n for n in self.layers}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, and note what it is given."""
        kwargs = kwargs or {}
        name = self.of_weight.get(id(argument(args, kwargs, 1, "weight")))
        if func is F.linear and name is not None and self.modules.running:
            layer, user = self.model.get_submodule(name), self.modules.running[-1]
            if user is layer or not _same(argument(args, kwargs, 2, "bias"), layer.bias):
                self.others.add(name)
            else:
                self.users.setdefault(name, set()).add(self.modules.names[user])
        return func(*args, **kwargs)


def _same(given: object, own: object) -> bool:
    if given is None or own is None:
        return given is own
    return isinstance(given, Tensor) and isinstance(own, Tensor) and torch.equal(given, own)


def find_used_by_function(
    model: nn.Module, layers: Collection[str], passes: Iterable[Callable[[], object]]
) -> dict[str, list[str]]:
    """Return block -> the linear layers that it uses by F.linear alone, by their names in it.

    Args:
        model: whose weights are looked at.
        layers: names of the linear layers that are looked for.
        passes: each makes a pass of the model; one that fails tells nothing.
    """
    uses = _Uses(model, layers)
    for make in passes:
        # whatever a model raises in a mode that it is not made for
        with uses.modules.watching(), uses, torch.no_grad(), suppress(Exception):
            make()
    found: dict[str, list[str]] = {}
    for name, users in uses.users.items():
        block = next(iter(users))
        inside = name.removeprefix(f"{block}." if block else "")
        if len(users) == 1 and name not in uses.others and (inside != name or not block):
            found.setdefault(block, []).append(inside)
    return found


def call_layers(model: nn.Module, blocks: Mapping[str, Collection[str]]) -> None:
    """Let blocks call layers that they use by F.linear, in place.

    A block of a class that has no subclass stays as it is.

    Args:
        model: changed in place.
        blocks: block -> names in it of the layers.
    """
    for name, layers in blocks.items():
        block = model.get_submodule(name)
        with suppress(Exception):  # whatever a class does when a subclass of it is made
            run_under(block, _mode_of)
            vars(block)[_LAYERS] = tuple(layers)


def _mode_of(block: nn.Module) -> TorchFunctionMode:
    names: tuple[str, ...] = vars(block).get(_LAYERS, ())
    return _Calls([block.get_submodule(name) for name in names])


def called_layers(model: nn.Module) -> dict[str, list[str]]:
    """Return block -> the layers that it was made to call, by names in the block."""
    return {
        name: list(vars(module)[_LAYERS])
        for name, module in model.named_modules()
        if _LAYERS in vars(module)
    }


def layers_called_so(model: nn.Module) -> set[nn.Module]:
    """Return the layers that blocks were made to call."""
    return {
        model.get_submodule(f"{block}.{layer}".lstrip("."))
        for block, layers in called_layers(model).items()
        for layer in layers
    }

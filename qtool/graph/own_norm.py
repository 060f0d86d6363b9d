"""Norms that do more: a batch norm and an activation in one module, as many libraries have them.

Such a module is of a subclass of a batch norm, and gives its own statistics to F.batch_norm. It is
changed so that it calls a module in its place, its own norm, which can be seen, folded into the
layer before it and replaced like any other; what follows stays as it is. Names and places of the
tensors do not change: the own norm has those of the module, and gives none to a state_dict.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.overrides import TorchFunctionMode

from qtool.graph.calling import run_under
from qtool.graph.running_modules import RunningModules
from qtool.graph.sites.functions import argument
from qtool.graph.swap import replace_module

NORM = "own_norm"  # its name in the module
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class OwnNorm(nn.Module):
    """What a module computes by F.batch_norm with its own tensors, which both hold."""

    def __init__(self, owner: BatchNorm) -> None:
        super().__init__()
        vars(self).update(_parameters=owner._parameters, _buffers=owner._buffers)
        self.eps = owner.eps

    def forward(self, x: Tensor, *, training: bool = False, momentum: float = 0.0) -> Tensor:
        """Return what F.batch_norm makes of x."""
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum, self.eps)

    def _save_to_state_dict(self, *args: object, **kwargs: object) -> None:
        """Give nothing: the module that it stands in gives these tensors."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Take nothing, likewise."""


class _Calls(TorchFunctionMode):
    """Calls a module's own norm, or what stands in its place, where it uses F.batch_norm."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, or the norm in its place."""
        kwargs = kwargs or {}
        if func is not F.batch_norm or not _of_owner(self.owner, args, kwargs):
            return func(*args, **kwargs)
        norm, x = self.owner.get_submodule(NORM), argument(args, kwargs, 0, "input")
        if not isinstance(norm, OwnNorm):
            return norm(x)
        training = argument(args, kwargs, 5, "training", default=False)
        momentum = argument(args, kwargs, 6, "momentum", default=0.1)
        return norm(x, training=training, momentum=momentum)


def _of_owner(owner: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Tell whether F.batch_norm is given the statistics, gain and shift of a module, as it is."""
    own = owner._buffers | owner._parameters
    names = ("running_mean", "running_var", "weight", "bias")
    given = (argument(args, kwargs, place, name) for place, name in enumerate(names, 1))
    return all(own.get(name) is tensor for name, tensor in zip(names, given, strict=True))


def _mode_of(owner: nn.Module) -> TorchFunctionMode:
    return _Calls(owner)


@dataclass
class _Uses(TorchFunctionMode):
    """Notes which modules give their own tensors to F.batch_norm, and how often in a pass."""

    model: nn.Module
    found: dict[str, int] = field(default_factory=dict)

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
        """Call a function, and note it."""
        kwargs = kwargs or {}
        if func is F.batch_norm and self.modules.running:
            owner = self.modules.running[-1]
            if _may_have_one(owner) and _of_owner(owner, args, kwargs):
                name = self.modules.names[owner]
                self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **kwargs)


def _may_have_one(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm that may do more than one, with statistics."""
    return (
        isinstance(module, BatchNorm)
        and type(module) not in PLAIN
        and type(module).forward is not BatchNorm.forward
        and module.running_mean is not None
        and NORM not in module._modules
    )


def find_own_norms(model: nn.Module, passes: Iterable[Callable[[], object]]) -> list[str]:
    """Return the modules that are batch norms by F.batch_norm and more, which passes show.

    Args:
        model: whose modules are looked at.
        passes: each makes a pass of the model; one that fails tells nothing.
    """
    if not any(map(_may_have_one, model.modules())):
        return []
    uses = _Uses(model)
    for make in passes:
        # whatever a model raises in a mode that it is not made for
        with uses.modules.watching(), uses, torch.no_grad(), suppress(Exception):
            make()
    return [name for name in uses.found if name]  # a model that is a norm has no layer


def give_own_norms(model: nn.Module, names: Collection[str]) -> None:
    """Let modules call norms of their own, in place; one of a class without subclass stays."""
    for name in names:
        owner = model.get_submodule(name)
        assert isinstance(owner, BatchNorm)
        with suppress(Exception):  # whatever a class does when a subclass of it is made
            run_under(owner, _mode_of)
            owner.add_module(NORM, OwnNorm(owner))


def own_norms(model: nn.Module) -> list[str]:
    """Return the modules that have norms of their own, or had one."""
    return [name for name, module in model.named_modules() if NORM in module._modules]


def as_known(name: str) -> str:
    """Return a norm's name as the network has it: that of the module whose own it is."""
    return name.removesuffix(f".{NORM}")


def has_own_norm(module: nn.Module) -> bool:
    """Tell whether a module has a norm of its own, so that it is none itself."""
    return NORM in module._modules


def without_norm(model: nn.Module, name: str) -> nn.Module:
    """Put nn.Identity in the place of a norm that was folded; return the model to go on with.

    The module whose own norm it was loses the tensors that both held.
    """
    norm = model.get_submodule(name)
    if isinstance(norm, OwnNorm):
        for tensors in (norm._parameters, norm._buffers):
            tensors.update(dict.fromkeys(tensors))
        owner = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(owner, BatchNorm)
        owner.track_running_stats = False  # else a loaded state is given some
    return replace_module(model, name, nn.Identity())

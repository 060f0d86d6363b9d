"""Copies of models that `copy.deepcopy` alone refuses, or that would still run the original."""

from collections.abc import Iterator
from copy import deepcopy
from types import FunctionType, MethodType
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from qtool.graph.inputs import tensors_in

M = TypeVar("M", bound=nn.Module)


def copy_of(model: M) -> M:
    """Return a copy of a model that shares nothing with it.

    A tensor that a module keeps beside its parameters, such as a weight that a hook computes or
    features of the last pass, is copied without its history. A `forward` that torch.compile made
    of a module's method is that method again.
    """
    kept = {id(tensor): tensor.detach().clone() for tensor in _with_history(model)}
    for buffer in model.buffers():
        if isinstance(buffer, UninitializedBuffer):  # torch copies only uninitialized parameters
            empty = UninitializedBuffer.__new__
            kept[id(buffer)] = empty(
                UninitializedBuffer, requires_grad=False, device=buffer.device, dtype=buffer.dtype
            )
    made = deepcopy(model, kept)
    for old, new in zip(model.modules(), made.modules(), strict=True):
        method = _compiled_method(old)
        if method is not None:
            del new.forward
            if method.__func__ is not type(old).forward:
                new.forward = MethodType(method.__func__, new)
    return made


def itself(model: nn.Module) -> nn.Module:
    """Return a model, or where torch.compile wrapped it, the model inside: the same modules."""
    inside = vars(model).get("_modules", {}).get("_orig_mod")
    return inside if isinstance(inside, nn.Module) else model


def what_cannot_be_copied(model: nn.Module) -> str:
    """Return the name of the first thing in a model that cannot be copied, such as `body.lock`."""
    for owner, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            kept = {id(part): part for part in model.modules()}
            kept |= {id(tensor): tensor for tensor in tensors_in(value)}
            try:
                deepcopy(value, kept)
            except Exception:
                return f"{owner}.{name}".lstrip(".")
    return type(model).__name__


def runs_the_original(model: nn.Module) -> str | None:
    """Return the name of a module whose copy would still call this model, or None.

    That is one whose `forward` was replaced on the object by a function that knows a module.
    """
    ours = set(map(id, model.modules()))
    for name, module in model.named_modules():
        function = vars(module).get("forward")
        if isinstance(function, FunctionType) and _compiled_method(module) is None:
            held = [value for value in _held_by(function) if isinstance(value, nn.Module)]
            if any(id(part) in ours for part in held):
                return name or type(model).__name__
    return None


def _with_history(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors in a model that a computation made."""
    for module in model.modules():
        for value in vars(module).values():
            yield from (tensor for tensor in tensors_in(value) if not tensor.is_leaf)


def _compiled_method(module: nn.Module) -> MethodType | None:
    """Return the module's method that its `forward` was compiled from, or None."""
    given: object = vars(module).get("forward")
    if not hasattr(given, "_torchdynamo_orig_callable"):
        return None
    for _ in range(2):  # dynamo wraps what it compiles once more
        given = getattr(given, "__wrapped__", given)
    return given if isinstance(given, MethodType) and given.__self__ is module else None


def _held_by(function: object) -> Iterator[object]:
    """Yield what a function holds in its closure, through functions, and the owners of methods."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            value: object = cell.cell_contents
        except ValueError:  # a name that was never given a value
            continue
        yield getattr(value, "__self__", value)
        if isinstance(value, FunctionType) and value is not function:
            yield from _held_by(value)

"""Subclasses whose forward says that a block, or a leaf, runs; a module's class is swapped for one.

They go by the name of the class itself, and pickle as what that class and its state are.
"""

import copyreg
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from types import MethodType
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from qtool import limits
from qtool.graph.sites.late_hooks import HearsLateHooks
from qtool.graph.sites.running import SITES, run_block, run_leaf, run_unseen

Kind = Literal["block", "leaf", "other"]
_NEW: object = vars(copyreg)["__newobj__"]  # what makes an object that pickles as most do
# forward -> the function that it calls, and its name, where torch.compile tells no mode of that
_UNSEEN: dict[object, tuple[str, Callable[[Tensor], Tensor]]] = {
    nn.Hardswish.forward: ("hardswish", F.hardswish),
    nn.Hardsigmoid.forward: ("hardsigmoid", F.hardsigmoid),
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {}  # subclass -> the class it was made of


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, before it was swapped."""
    return _PLAIN.get(type(module), type(module))


def swap_block(name: str, module: nn.Module) -> None:
    """Swap the class of a block for one whose calls are counted, in place.

    Raises:
        ModelError: If no subclass can be made of it.
    """
    _swap(name, module, "block")


def swap_leaf(name: str, module: nn.Module) -> None:
    """Swap the class of a leaf for one whose calls are told from those of the block, in place.

    Raises:
        ModelError: If no subclass can be made of it.
    """
    _swap(name, module, "leaf")


def swap_other(name: str, module: nn.Module) -> None:
    """Swap the class of a module that is neither, for one that hears of hooks, in place.

    Raises:
        ModelError: If no subclass can be made of it.
    """
    _swap(name, module, "other")


def _swap(name: str, module: nn.Module, kind: Kind) -> None:
    if type(module) in _PLAIN:
        return
    try:
        module.__class__ = _swapped(type(module), kind)
    except Exception as error:  # whatever a class does when a subclass of it is made
        given = type(module).__name__
        raise limits.NO_SUBCLASS.error(module=name or given, type=given, error=error) from error


class _Unheard:
    """The first base of the subclass of a class that wants to be told of its subclasses."""

    def __init_subclass__(cls) -> None:
        """Say nothing of it."""


@cache
def _swapped(cls: type[nn.Module], kind: Kind) -> type[nn.Module]:
    """Return the subclass of a class; one for each, so that pickles and guards find it again."""
    plain = cls.forward

    def block_forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        return run_block(self, plain, args, kwargs)

    def leaf_forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        return run_leaf(self, plain, self, *args, **kwargs)

    unseen = _UNSEEN.get(plain)

    def unseen_forward(self: nn.Module, input: Tensor) -> object:
        assert unseen is not None
        return run_unseen(self, *unseen, input)

    forward = block_forward if kind == "block" else leaf_forward
    if kind == "leaf" and unseen is not None:
        forward = unseen_forward
    vars(forward)["__wrapped__"] = plain  # torch.export reads the signature

    def reduced(self: nn.Module, protocol: int) -> tuple[object, ...]:
        return _reduced(self, protocol, kind)

    content: dict[str, object] = {
        "__reduce_ex__": reduced,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    content |= {"forward": forward} if kind != "other" else {}
    content |= _without_sites(cls) if kind == "block" else {}
    hears = isinstance(cls.__init_subclass__, MethodType)  # not that of object
    bases = (_Unheard, HearsLateHooks, cls) if hears else (HearsLateHooks, cls)
    make = cast(Callable[..., type[nn.Module]], type(cls))  # its metaclass
    made = make(cls.__name__, bases, content)
    _PLAIN[made] = cls
    return made


def _reduced(module: nn.Module, protocol: int, kind: Kind) -> tuple[object, ...]:
    """Return how a module is pickled and copied: as its class does, then swapped."""
    cls = class_of(module)
    make, args, *rest = cls.__reduce_ex__(module, protocol)
    if make is _NEW:
        args = (cls, *args[1:])  # found by its name, unlike the subclass
    return (_made, (kind, make, args), *rest)


def _made(kind: Kind, make: Callable[..., nn.Module], args: tuple[object, ...]) -> nn.Module:
    module = make(*args)
    module.__class__ = _swapped(class_of(module), kind)
    return module


def _without_sites(cls: type[nn.Module]) -> dict[str, object]:
    """Return methods of containers that show their children without the sites among them."""
    item_of = cast(Callable[..., object], getattr(cls, "__getitem__", None))

    def own(self: nn.Module) -> OrderedDict[str, nn.Module | None]:
        return OrderedDict((name, m) for name, m in self._modules.items() if name != SITES)

    def length(self: nn.Module) -> int:
        return len(own(self))

    def modules(self: nn.Module) -> Iterator[nn.Module | None]:
        return iter(own(self).values())

    def names(self: nn.Module) -> Iterator[str]:
        return iter(own(self))

    def has(self: nn.Module, name: str) -> bool:
        return name in own(self)

    def item(self: nn.Module, index: int | slice) -> object:
        if not isinstance(index, slice):
            return item_of(self, index)
        kind = cast(Callable[[object], nn.Module], self.__class__)
        if issubclass(cls, nn.Sequential):
            return kind(OrderedDict(list(own(self).items())[index]))
        return kind(list(own(self).values())[index])

    listed = {"__len__": length, "__iter__": modules, "__getitem__": item}
    named = {
        "__len__": length,
        "__iter__": names,
        "__contains__": has,
        "keys": lambda self: own(self).keys(),
        "values": lambda self: own(self).values(),
        "items": lambda self: own(self).items(),
    }
    for container, methods in (
        (nn.Sequential, listed),
        (nn.ModuleList, listed),
        (nn.ModuleDict, named),
    ):
        if issubclass(cls, container):
            same = [name for name in methods if getattr(cls, name) is getattr(container, name)]
            return {name: methods[name] for name in same}
    return {}

"""Modules whose forward runs under a function mode: their class is swapped for a subclass.

Copies and pickles carry it: the subclass pickles by the class itself.
"""

import copyreg
from collections.abc import Callable
from functools import cache
from typing import cast

from torch import nn
from torch.overrides import TorchFunctionMode

_NEW: object = vars(copyreg)["__newobj__"]  # what makes an object that pickles as most do
ModeOf = Callable[[nn.Module], TorchFunctionMode]


def run_under(module: nn.Module, mode_of: ModeOf) -> None:
    """Let a module run under a mode, in place.

    Args:
        module: whose class is swapped.
        mode_of: a function of a Python file that makes the mode of a call.
    """
    module.__class__ = _under(type(module), mode_of)


@cache
def _under(cls: type[nn.Module], mode_of: ModeOf) -> type[nn.Module]:
    """Return the subclass of a module's class that runs under a mode."""
    plain = cls.forward

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        with mode_of(self):
            return plain(self, *args, **kwargs)

    vars(forward)["__wrapped__"] = plain  # torch.export reads the signature

    def reduced(self: nn.Module, protocol: int) -> tuple[object, ...]:
        make, args, *rest = cls.__reduce_ex__(self, protocol)
        if make is _NEW:
            args = (cls, *args[1:])  # found by its name, unlike the subclass
        return (_made, (make, args, mode_of), *rest)

    content: dict[str, object] = {
        "forward": forward,
        "__reduce_ex__": reduced,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    make = cast(Callable[..., type[nn.Module]], type(cls))  # its metaclass
    return make(cls.__name__, (cls,), content)


def _made(make: Callable[..., nn.Module], args: tuple[object, ...], mode_of: ModeOf) -> nn.Module:
    """Return an empty module, for pickles and copies."""
    module = make(*args)
    run_under(module, mode_of)
    return module

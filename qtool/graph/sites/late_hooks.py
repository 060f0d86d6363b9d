"""Hooks that are registered on a model once its sites are known: what they call is not counted.

A hook that was there when the graph of values was recorded is a part of the network, and its calls
are calls of the block that runs its module. One that came later is not, and its calls would shift
those behind it.
"""

from collections.abc import Callable

from torch import nn
from torch.utils.hooks import RemovableHandle

from qtool.graph.sites.running import apart

Hook = Callable[..., object]


class LateHook:
    """A hook whose functions are no calls of a block.

    Attributes:
        hook: as it was registered.
    """

    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""
        return apart(self.hook, *args, **kwargs)


def hook_of(hook: object) -> object:
    """Return a hook of a module as it was registered."""
    return hook.hook if isinstance(hook, LateHook) else hook


class HearsLateHooks(nn.Module):
    """A module of a model whose sites are known."""

    def register_forward_pre_hook(self, hook: Hook, **how: bool) -> RemovableHandle:
        """Register a hook as `nn.Module` does; what it calls is not counted."""
        return super().register_forward_pre_hook(_late(hook), **how)

    def register_forward_hook(self, hook: Hook, **how: bool) -> RemovableHandle:
        """Register a hook as `nn.Module` does; what it calls is not counted."""
        return super().register_forward_hook(_late(hook), **how)


def _late(hook: Hook) -> Hook:
    """Return a hook that runs apart; those of torch's classes, which it looks for, stay."""
    return hook if type(hook).__module__.startswith("torch.") else LateHook(hook)

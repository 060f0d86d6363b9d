"""What qtool keeps on a model that it made, as `model.qtool`, and how it swaps a model's parts."""

from typing import TypeVar

from torch import nn

ATTRIBUTE = "qtool"
T = TypeVar("T")


def keep_state(model: nn.Module, state: object) -> None:
    """Put what is known of a model on it, in the place of what was known before."""
    setattr(model, ATTRIBUTE, state)


def kept_state(model: nn.Module, kind: type[T], maker: str) -> T:
    """Return what was kept on a model.

    Raises:
        ValueError: If it is not of this kind, so that the model did not come from `maker`.
    """
    state = getattr(model, ATTRIBUTE, None)
    if not isinstance(state, kind):
        raise ValueError(f"this model did not come from {maker}")
    return state


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` at every place where the module called `name` stands in the model."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old:
                setattr(parent, child, new)

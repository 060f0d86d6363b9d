"""What qtool keeps on a model that it made, as `model.qtool`: it travels with every copy."""

from typing import Any, TypeVar

from torch import nn

ATTRIBUTE = "qtool"
T = TypeVar("T")


def keep_state(model: nn.Module, state: Any) -> None:
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

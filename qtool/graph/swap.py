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


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` in the place of a module, at every name and in every list that holds it.

    Args:
        model: changed in place, unless it is itself what is replaced.
        name: any of the module's names in the model; "" is the model itself.
        new: what takes its place.

    Returns:
        The model to go on with: `new` where the model itself was replaced.
    """
    old = model.get_submodule(name)
    for full, module in list(model.named_modules(remove_duplicate=False)):
        if module is old and full:
            parent, _, child = full.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    for module in model.modules():
        for key in vars(module).keys() - _OWN:
            vars(module)[key] = _with_new(vars(module)[key], old, new, set())
    return new if old is model else model


_OWN = vars(nn.Module()).keys()  # what every module keeps of itself


def _with_new(held: object, old: nn.Module, new: nn.Module, seen: set[int]) -> object:
    """Return what plain lists, tuples and dicts hold, with `new` for `old`."""
    if held is old:
        return new
    if isinstance(held, list | dict) and id(held) not in seen:
        seen.add(id(held))
        places = range(len(held)) if isinstance(held, list) else list(held)
        for place in places:
            held[place] = _with_new(held[place], old, new, seen)
    elif type(held) is tuple:
        return tuple(_with_new(item, old, new, seen) for item in held)
    return held

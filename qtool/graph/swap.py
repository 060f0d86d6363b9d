"""What qtool keeps on a model that it made, as `model.qtool`, and how it swaps a model's parts."""

from typing import ClassVar, TypeVar

from torch import nn

from qtool.graph.sites.late_hooks import HearsLateHooks

ATTRIBUTE = "qtool"
GIVEN_BY = "qtool_given_by"  # on a weight that a part has computed: the part


class Kept:
    """What is kept on a model that qtool made.

    Attributes:
        maker: the function that made the model, such as qtool.prepare.
        model: what the model is, in words.
    """

    maker: ClassVar[str]
    model: ClassVar[str]


class Part(HearsLateHooks):
    """A module that qtool put into a model.

    Attributes:
        maker: the function that puts it there.
    """

    maker: ClassVar[str]


T = TypeVar("T", bound=Kept)


def keep_state(model: nn.Module, state: object) -> None:
    """Put what is known of a model on it, in the place of what was known before."""
    setattr(model, ATTRIBUTE, state)


def kept_state(model: nn.Module, kind: type[T]) -> T:
    """Return what was kept on a model.

    Raises:
        ValueError: If it is not of this kind, so that the model came from elsewhere; says what it
            is.
    """
    state = getattr(model, ATTRIBUTE, None)
    if not isinstance(state, kind):
        raise ValueError(f"this model did not come from {kind.maker}: it is {_what_it_is(model)}")
    return state


def _what_it_is(model: nn.Module) -> str:
    """Return in words what a model is that something else was expected of."""
    state = getattr(model, ATTRIBUTE, None)
    if isinstance(state, Kept):
        return f"{state.model}, from {state.maker}"
    makers = {module.maker for module in model.modules() if isinstance(module, Part)}
    if makers:
        return f"a part, or another wrapping, of what {' and '.join(sorted(makers))} returned"
    return "a float model, which qtool.prepare takes"


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` in the place of a module, at every name and in every list that holds it.

    Hooks of the old module's forward pass go over: they are a part of what the model computes.

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
    for hooks in _HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    return new if old is model else model


def take_attributes(new: nn.Module, old: nn.Module) -> None:
    """Give a part the numbers and names that the module has in whose place it comes.

    Such as in_channels: a model's own code may ask for them.
    """
    for key, value in vars(old).items():
        known = key.startswith("_") or key in vars(new) or hasattr(type(new), key)
        if not known and all(
            isinstance(one, bool | int | float | str | None)
            for one in (value if isinstance(value, tuple) else [value])
        ):
            setattr(new, key, value)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
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

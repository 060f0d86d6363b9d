"""The parameters of a user's part: which of them a recipe may set, and what it may set them to."""

import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from inspect import Parameter
from typing import Annotated, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import TypeAdapter

from qtool.errors import RecipeError
from qtool.settings.user_parts import Part

T = TypeVar("T")
_PLAIN = (int, float, bool, str, type(None), list, dict, object)


def parameters_of(part: Part) -> dict[str, Parameter]:
    """Return all parameters of a part; of what Python cannot tell them of, any keyword."""
    try:
        found = inspect.signature(part.function)
    except (TypeError, ValueError):
        return {"parameters": Parameter("parameters", Parameter.VAR_KEYWORD)}
    return dict(found.parameters)


def settable(part: Part, given: Collection[str] = (), positional: int = 0) -> list[Parameter]:
    """Return the parameters that a recipe may set, keyword-only, with types that are checked.

    Args:
        part: whose they are.
        given: names of those that qtool gives where the signature has them.
        positional: how many of the first are given by position.

    Raises:
        RecipeError: If it needs another by position.
    """
    found: list[Parameter] = []
    for index, parameter in enumerate(parameters_of(part).values()):
        if index < positional or parameter.kind is Parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is Parameter.VAR_KEYWORD:
            found.append(parameter.replace(annotation=Parameter.empty))
        elif parameter.kind is Parameter.POSITIONAL_ONLY:
            if parameter.default is Parameter.empty:
                why = f"takes {parameter.name} by position only; a recipe's are keywords"
                raise RecipeError(f"{part.place} {why}")
        elif parameter.name not in given:
            kind = _checkable(parameter.annotation, part.function)
            found.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))
    return found


def as_member(
    part: Part,
    function: Callable[..., T],
    settable: Iterable[Parameter],
    positional: Sequence[str] = (),
) -> Callable[..., T]:
    """Return a function as a table of qtool's takes it, whose parameters are the user's."""
    # the user's may have the same names
    first = [Parameter(f"given_{name}", Parameter.POSITIONAL_ONLY) for name in positional]
    own = sorted(settable, key=lambda parameter: parameter.kind)

    def member(*args: object, **params: object) -> T:
        return function(*args, **params)

    member.__name__ = member.__qualname__ = part.name.rpartition(":")[2]
    member.__doc__ = inspect.getdoc(part.function)
    vars(member)["__signature__"] = inspect.Signature([*first, *own])
    return member


def _checkable(annotation: object, function: object) -> object:
    """Return a parameter's type as far as a recipe can be checked by it; `object` of any other."""
    if isinstance(annotation, str):
        home = sys.modules.get(getattr(function, "__module__", None) or "")
        try:
            annotation = eval(annotation, dict(vars(home)) if home is not None else {})
        # whatever stands there: it is only a hint
        except Exception:
            return object
    if annotation is Parameter.empty or not _is_plain(annotation):
        return object
    try:
        TypeAdapter[object](cast(type, annotation))
    except Exception:
        return object
    return annotation


def _is_plain(kind: object) -> bool:
    """Tell whether YAML can hold every value of a type, and none that it means otherwise."""
    if kind in _PLAIN:
        return True
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return True
    if origin is Annotated:
        return _is_plain(args[0])
    return origin in (Union, types.UnionType, list, dict) and all(map(_is_plain, args))

"""Tables of interchangeable functions that a recipe chooses by name."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from qtool.errors import RecipeError
from qtool.problems import did_you_mean, plain_message

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """One family of interchangeable functions, such as the gradient estimators.

    A recipe names a function and sets its keyword-only parameters.
    The caller passes the positional ones.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self._members: dict[str, F] = {}

    def add(self, function: F, name: str | None = None) -> F:
        """List `function` under its own name, or another. Used as a decorator."""
        self._members[name or function.__name__] = function
        return function

    def include(self, other: "Registry[F]") -> None:
        """List the members of another table too, which keeps them as a family of its own."""
        self._members |= other._members

    def names(self) -> list[str]:
        """Return the names a recipe may use, in file order."""
        return list(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> F:
        if name not in self._members:
            raise RecipeError(f"unknown {self.family} {name!r}{did_you_mean(name, self.names())}")
        return self._members[name]

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters of `name`: those a recipe may set."""
        signature = inspect.signature(self[name])
        return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    def problems(self, name: str, params: dict[str, Any]) -> list[tuple[str, str]]:
        """Return every (parameter, what is wrong with it); `""` stands for the name itself."""
        if name not in self._members:
            return [("", f"unknown {self.family} {name!r}{did_you_mean(name, self.names())}")]
        accepted = self.parameters(name)
        found = []
        for key, value in params.items():
            if key not in accepted:
                hint = did_you_mean(key, accepted) if accepted else "; it takes none"
                found.append((str(key), f"{name} has no parameter {key}{hint}"))
                continue
            kind = accepted[key].annotation
            try:
                TypeAdapter(Any if kind is inspect.Parameter.empty else kind).validate_python(
                    value, strict=True
                )
            except ValidationError as error:
                found.append((key, plain_message(error.errors()[0])))
            else:
                if isinstance(value, float) and not math.isfinite(value):
                    found.append((key, f"{value} is not a finite number"))
        missing = [k for k, p in accepted.items() if p.default is p.empty and k not in params]
        return found + [(key, f"missing; {name} needs it") for key in missing]

    def build(self, name: str, **params: Any) -> Callable[..., Any]:
        """Return the function called `name` with `params` filled in.

        Raises:
            RecipeError: If the name or a parameter is unknown, missing or of the wrong type.
        """
        if found := self.problems(name, params):
            raise RecipeError("; ".join(f"{k}: {why}" if k else why for k, why in found))
        return partial(self._members[name], **params) if params else self._members[name]

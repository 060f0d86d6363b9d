"""Tables of interchangeable functions that a recipe chooses by name.

A table may come with facts: what the rest of qtool must know of a member stands in the decorator
that lists it, and is asked for by name, so that no other place holds a list of members.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, ParamSpec, TypeVar, cast, overload

from pydantic import TypeAdapter, ValidationError

from qtool.errors import RecipeError
from qtool.problems import Problem, brief, did_you_mean, plain_message, unknown

F = TypeVar("F", bound=Callable[..., object])
P = ParamSpec("P")
K = TypeVar("K")
LARGEST = (2 - 2**-23) * 2.0**127  # number of float32, in which all tensors are computed


class Registry(Generic[F]):
    """One family of interchangeable functions, such as the gradient estimators.

    A recipe names a function and sets its keyword-only parameters.
    The caller passes the positional ones.
    """

    def __init__(self, family: str, *, largest: float = LARGEST) -> None:
        """Make an empty table; `largest` is the most that a parameter may be, either way."""
        self.family, self.largest = family, largest
        self._members: dict[str, F] = {}

    def add(self, function: F, name: str | None = None) -> F:
        """List `function` under its own name, or another. Used as a decorator."""
        self._members[name or function.__name__] = function
        return function

    def with_facts(self, facts: Callable[P, K]) -> "FactRegistry[F, P, K]":
        """Return an empty table of this family whose members come with facts.

        Args:
            facts: a frozen dataclass whose every field has a default: what is true of a member
                that says nothing else of itself.
        """
        return FactRegistry(self.family, facts, largest=self.largest)

    def names(self) -> list[str]:
        """Return the names a recipe may use, in file order."""
        return list(self._members)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._members

    def __getitem__(self, name: str) -> F:
        if name not in self._members:
            raise RecipeError(self._unknown(name))
        return self._members[name]

    def refuse_unknown(self, name: str) -> None:
        """Check that there is a member of this name.

        Raises:
            RecipeError: If there is none; names those like it.
        """
        self[name]

    def _unknown(self, name: str) -> str:
        return unknown(self.family, name, self._members)

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters of `name`: those a recipe may set."""
        signature = inspect.signature(self[name])
        return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    def _takes_any(self, name: str) -> bool:
        """Tell whether a member, which is a user's, takes any parameters beside those it names."""
        kinds = (p.kind for p in inspect.signature(self._members[name]).parameters.values())
        return inspect.Parameter.VAR_KEYWORD in kinds

    def problems(self, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return every (parameter, what is wrong with it); `""` stands for the name itself."""
        if name not in self._members:
            return [("", self._unknown(name))]
        accepted = self.parameters(name)
        found = []
        for key, value in params.items():
            if key not in accepted:
                if self._takes_any(name):
                    continue
                hint = did_you_mean(key, accepted) if accepted else "; it takes none"
                found.append((str(key), f"{name} has no parameter {brief(key)}{hint}"))
                continue
            kind = accepted[key].annotation
            try:
                TypeAdapter(object if kind is inspect.Parameter.empty else kind).validate_python(
                    value, strict=True
                )
            except ValidationError as error:
                found.append((key, plain_message(error.errors()[0])))
            else:
                if why := _beyond(value, self.largest):
                    found.append((key, why))
        missing = [k for k, p in accepted.items() if p.default is p.empty and k not in params]
        return found + [(key, f"missing; {name} needs it") for key in missing]

    def values(self, name: str, given: Mapping[str, object]) -> dict[str, object]:
        """Return the parameters of `name` with their values: those given, else the defaults."""
        defaults = {k: p.default for k, p in self.parameters(name).items()}
        return {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty} | dict(given)

    def build(self, name: str, **params: object) -> F:
        """Return the function called `name` with `params` filled in.

        Raises:
            RecipeError: If the name or a parameter is unknown, missing or of the wrong type.
        """
        if found := self.problems(name, params):
            raise RecipeError("; ".join(f"{k}: {why}" if k else why for k, why in found))
        function = self._members[name]
        return cast(F, partial(function, **params)) if params else function


def _beyond(value: object, largest: float) -> str:
    """Say what cannot be of a parameter, a number or a list of numbers; "" if nothing."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            return f"{number} is not a finite number"
        if isinstance(number, float) and abs(number) > largest:
            return f"{number:g} is too large; float32 reaches to {largest:.3g}"
    return ""


class FactRegistry(Registry[F], Generic[F, P, K]):
    """A table whose members come with facts: `@TABLE.add(fact=..., fact=...)`.

    Plain `@TABLE.add` lists a member of which everything usual is true.
    """

    def __init__(self, family: str, facts: Callable[P, K], *, largest: float = LARGEST) -> None:
        super().__init__(family, largest=largest)
        self._of_facts: Callable[..., K] = facts
        self._facts: dict[str, K] = {}

    @overload
    def add(self, function: F, name: str | None = None) -> F: ...

    @overload
    def add(self, *args: P.args, **facts: P.kwargs) -> Callable[[F], F]: ...

    def add(self, function: F | None = None, name: str | None = None, **facts: object) -> object:
        """List a function under its own name, or another, with what is true of it.

        Args:
            function: the member; without one, what this returns is the decorator.
            name: of the member, where it is not the function's own.
            **facts: fields of the table's facts.
        """
        if function is None:
            return partial(self._add, facts=self._of_facts(**facts))
        return self._add(function, name, facts=self._of_facts(**facts))

    def _add(self, function: F, name: str | None = None, *, facts: K) -> F:
        super().add(function, name)
        self._facts[name or function.__name__] = facts
        return function

    def include(self, other: Registry[F], *args: P.args, **facts: P.kwargs) -> None:
        """List the members of another table too, of all of which these facts are true."""
        for name in other.names():
            self._add(other[name], name, facts=self._of_facts(*args, **facts))

    def facts(self, name: str) -> K:
        """Return what is true of a member; the usual where it says nothing, or is not listed."""
        return self._facts[name] if name in self and name in self._facts else self._of_facts()

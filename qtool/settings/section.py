"""Strict sections of a recipe, and how their errors read.

A section is a frozen pydantic model that refuses unknown keys and silent conversions. `check`
turns plain data into one, or into a RecipeError that lists every problem with its dotted place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple, Protocol, TypeGuard, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from qtool.problems import Problem, ProblemsError, did_you_mean, plain_message, report, shown

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """A part of the recipe: no unknown keys, no silent conversions, no changes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Named(BaseModel):
    """One of a family by its name; keys that are not fields are its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str

    @property
    def params(self) -> dict[str, object]:
        """Return the parameters without the name."""
        return dict(self.model_extra or {})

    def parameter(self, key: str, usual: T) -> T:
        """Return one parameter, which was checked to be of `usual`'s type; `usual` where absent."""
        return cast(T, self.params.get(key, usual))


class Choice(Named):
    """A registered function and its parameters: `name`, or `{name: ..., parameter: ...}`."""

    def __str__(self) -> str:
        if not self.params:
            return self.name
        return _written(self.name, self.params)


def _written(name: object, params: Mapping[str, object]) -> str:
    """Return `name(parameter=value)`, with schedules among the values written alike."""
    values = {
        key: _written(value["name"], {k: v for k, v in value.items() if k != "name"})
        if isinstance(value, dict) and "name" in value
        else value
        for key, value in params.items()
    }
    return f"{name}({', '.join(f'{key}={value}' for key, value in values.items())})"


class Checked(NamedTuple):
    """What a check found, and what it leaves to the one after it."""

    problems: list[Problem]
    rest: Mapping[str, object]  # parameters


class Table(Protocol):
    """Where names come from, such as a Registry of anything."""

    def names(self) -> list[str]:
        """Return the names."""
        ...

    def problems(self, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return every (parameter, what is wrong with it)."""
        ...

    def __contains__(self, name: object, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class InTable(BeforeValidator):
    """The check that a choice names a member of a table.

    Attributes:
        table: where the names come from.
    """

    table: Table | None = None


def in_registry(
    registry: Table,
    also: Callable[[str, Mapping[str, object]], Checked] = lambda name, params: Checked([], params),
    unless: Callable[[str], bool] = lambda name: False,
) -> InTable:
    """Return the check that a choice names a member of `registry` and fits its parameters.

    Args:
        registry: where the names come from.
        also: takes the name and parameters, and returns the problems that it finds with those
            parameters that are not the registry's, and the others.
        unless: tells which names need not be known.
    """

    def check_choice(value: object) -> object:
        choice = {"name": value} if isinstance(value, str) else value
        if isinstance(choice, Choice):
            choice = choice.model_dump()
        if not isinstance(choice, dict):
            why = f"{shown(value)} is not a name or {{name: ..., parameter: ...}}"
            raise ProblemsError([("", why)])
        if not isinstance(name := choice.get("name"), str):
            wrong = "missing" if name is None else f"{shown(name)} is not text"
            why = f"{wrong}; choose one of: {', '.join(registry.names())}"
            raise ProblemsError([("name", why)])
        found, rest = also(name, {key: item for key, item in choice.items() if key != "name"})
        if name in registry or not unless(name):
            found = found + registry.problems(name, rest)
        if found:
            raise ProblemsError(found)
        return choice

    return InTable(check_choice, table=registry)


def check(section: type[S], data: object, source: str) -> S:
    """Return `data` as a section.

    Raises:
        RecipeError: Lists every problem with its dotted place, under the name `source`.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        found = problems_of(error, section)
    raise report(source, found)


def attempt(
    section: type[S], data: object, handler: Callable[[object], S]
) -> tuple[S | None, object, list[Problem]]:
    """Let pydantic check a section inside a wrap validator, so that further checks can follow.

    Returns:
        The section, or None where its own fields are wrong; its plain data; the problems so far.
    """
    try:
        made = handler(data)
    except ValidationError as error:
        return None, data, problems_of(error, section)
    return made, made.model_dump(), []


def problems_of(error: ValidationError, section: type[BaseModel]) -> list[Problem]:
    """Return every problem of a failed validation, with places as in the recipe."""
    found: list[Problem] = []
    for item in error.errors():
        place = ".".join(_as_written(part) for part in item["loc"] if part not in _NO_KEYS)
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ProblemsError):
            found += [(".".join(filter(None, [place, inner])), why) for inner, why in cause.found]
        elif item["type"] == "extra_forbidden":
            known = _keys_at(section, item["loc"][:-1])
            found.append((place, f"unknown key{did_you_mean(str(item['loc'][-1]), known)}"))
        else:
            found.append((place, plain_message(item)))
    misspelt = {
        ".".join([*place.split(".")[:-1], why.partition("did you mean ")[2].rstrip("?")])
        for place, why in found
        if "did you mean " in why
    }
    found = [(place, why) for place, why in found if why != "missing" or place not in misspelt]
    return _one_for_each_place(found)


_NO_KEYS = ("str", "list[str]", "[key]")  # what pydantic adds to a place: which kind it tried


def _as_written(key: object) -> str:
    return "null" if key is None or key == "None" else str(key)


def _one_for_each_place(found: list[Problem]) -> list[Problem]:
    """Join what several rules say of the same place, in the order of the first."""
    joined: dict[str, list[str]] = {}
    for place, why in found:
        if why not in joined.setdefault(place, []):
            joined[place].append(why)
    return [(place, "; ".join(reasons)) for place, reasons in joined.items()]


def _keys_at(section: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section at `loc` knows."""
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        models = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            return []
        section = models[0]
    return list(section.model_fields)


def finite(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False

"""What of a recipe is wrong by its keys, names and plain values; opens without torch.

The full check, in `Recipe`, takes everything that this finds and more, in the same words: rules
between keys, values of schedules, the user's own parts. So a recipe that passes here may still be
refused, seconds later. What the sections are stands in keys.json, which is made of them
(`python -m tests.docs --write`); what may be chosen, in registry.json.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from qtool.known import Family, Known, KnownParameter, known, known_names, registered
from qtool.problems import (
    Problem,
    brief,
    did_you_mean,
    no_schedule,
    plain_message,
    report,
    shown,
    unknown,
)
from qtool.recipe.extends import chain_of, joined
from qtool.recipe.plain import override

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE = Path(__file__).with_name("keys.json")
RATE = "training.learning_rate"
# how messages call a family
WORDS: dict[str, str] = {
    "models": "model",
    "data": "data set",
    "estimators": "estimator",
    "ranges": "range",
    "schedules": "schedule",
    "losses": "loss",
    "optimizers": "optimizer",
}
NUMBERS = ("integer", "number")


class Schema(TypedDict, total=False):
    """As much of JSON Schema as the sections take.

    Attributes:
        family: in which a choice is looked up, by its name.
        named: the section itself names one of a family, and its other keys are parameters.
    """

    type: str
    properties: dict[str, "Schema"]
    required: list[str]
    items: "Schema"
    anyOf: list["Schema"]
    enum: list[str]
    minimum: float
    maximum: float
    exclusiveMinimum: float
    exclusiveMaximum: float
    additionalProperties: bool
    family: NotRequired[Family]
    named: NotRequired[Family]


@cache
def sections() -> Schema:
    """Return what keys.json says of a whole recipe."""
    made: Schema = json.loads(FILE.read_text(encoding="utf-8"))
    return made


def refuse_wrong_words(path: Path, assignments: Sequence[str]) -> None:
    """Check the keys, names and plain values of a recipe file, with those that it extends.

    Args:
        path: of the file.
        assignments: of `--set`.

    Raises:
        RecipeError: If a file cannot be read. Lists every problem with its dotted place.
    """
    data: Mapping[str, object] = {}
    for extended in reversed(chain_of(path)):
        data = joined(data, extended.data)
    if found := early_problems(override(data, assignments)):
        raise report(str(path), found)


def early_problems(data: Mapping[str, object]) -> list[Problem]:
    """Return what is wrong with a recipe's plain data, as far as words and numbers tell."""
    return list(_section(sections(), data, ""))


def _problems(schema: Schema, value: object, place: str) -> Iterator[Problem]:
    """Yield what is wrong with a value at a place."""
    if "anyOf" in schema:
        yield from _any_of(schema["anyOf"], value, place)
    elif "family" in schema:
        yield from _choice(schema["family"], value, place)
    elif schema.get("type") == "object":
        yield from _section(schema, value, place)
    elif schema.get("type") == "array" and isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _problems(schema["items"], item, f"{place}.{index}")
    elif why := _wrong(schema, value):
        yield place, why


def _any_of(schemas: Sequence[Schema], value: object, place: str) -> Iterator[Problem]:
    """Yield what is wrong with a value that is none of several kinds; of several, nothing."""
    others = [each for each in schemas if each.get("type") != "null"]
    if value is None and len(others) < len(schemas):
        return
    if len(others) == 1:
        yield from _problems(others[0], value, place)


def _section(schema: Schema, value: object, place: str) -> Iterator[Problem]:
    """Yield what is wrong with a section: values, keys that are missing, unknown keys."""
    keys = schema.get("properties")
    if keys is None:
        return
    if not isinstance(value, dict):
        yield place, f"{shown(value)} is not a mapping of keys"
        return
    given: Mapping[object, object] = value
    inside = f"{place}." if place else ""
    unknown = [key for key in given if key not in keys]
    hints = {key: did_you_mean(str(key), keys) for key in unknown}
    meant = {hint.partition("did you mean ")[2].rstrip("?") for hint in hints.values()}
    for key, inner in keys.items():
        if key in given:
            if not (given[key] is None and inner.get("type") == "object"):
                yield from _problems(inner, given[key], f"{inside}{key}")
        elif key in schema.get("required", []) and key not in meant:
            yield f"{inside}{key}", "missing"
    if "named" in schema:
        yield from _parameters_of_section(schema["named"], given, keys, inside)
    elif schema.get("additionalProperties") is False:
        for key in unknown:
            if isinstance(key, str):
                yield f"{inside}{key}", f"unknown key{hints[key]}"


def _parameters_of_section(
    family: Family, given: Mapping[object, object], keys: Mapping[str, Schema], inside: str
) -> Iterator[Problem]:
    """Yield what is wrong with the name of a section, and with its keys that are no fields."""
    name = given.get("name")
    if not isinstance(name, str) or ":" in name:
        return
    others = {str(key): value for key, value in given.items() if key not in keys}
    for key, why in _of_family(family, name, others):
        near = did_you_mean(key, keys)
        if "has no parameter" in why and "did you mean" in near and "did you mean" not in why:
            why = f"unknown key{near}"
        yield f"{inside}{key or 'name'}", why


def _choice(family: Family, value: object, place: str) -> Iterator[Problem]:
    """Yield what is wrong with a choice: a name, or a mapping with its name and parameters."""
    if family == "schedules" and isinstance(value, int | float):  # most are constant then
        return
    choice: object = {"name": value} if isinstance(value, str) else value
    if not isinstance(choice, dict):
        yield place, f"{shown(value)} is not a name or {{name: ..., parameter: ...}}"
        return
    name = choice.get("name")
    if not isinstance(name, str):
        wrong = "missing" if name is None else f"{shown(name)} is not text"
        yield f"{place}.name", f"{wrong}; choose one of: {', '.join(known_names(family))}"
    elif family == "schedules" and isinstance(value, str) and _is_unknown_at(place, value):
        yield place, no_schedule(name, known_names(family))
    elif ":" not in name:
        params = {key: item for key, item in choice.items() if key != "name"}
        schedule = family == "schedules" and name in known_names(family)
        found = _schedule(name, params, place) if schedule else _of_family(family, name, params)
        for key, why in found:
            yield f"{place}.{key}".rstrip("."), why


def _is_unknown_at(place: str, name: str) -> bool:
    """Tell whether a word is no schedule, where a number may stand: anywhere but in a blend."""
    return not place.endswith("blend") and ":" not in name and name not in known_names("schedules")


def _schedule(name: str, params: Mapping[str, object], place: str) -> Iterator[Problem]:
    """Yield what is wrong with the parameters of a schedule, whose own table needs no torch."""
    from qtool.numerics.schedules import SCHEDULES, wrong_warmup

    rate = place == RATE
    if rate and (why := wrong_warmup(params.get("warmup", 0.0))):
        yield "warmup", why
    own = {key: value for key, value in params.items() if key != ("warmup" if rate else "phases")}
    for key, why in SCHEDULES.problems(name, own):
        if rate or not why.startswith("missing"):  # a blend knows where it starts and stops
            yield key, why


def _of_family(family: Family, name: str, params: Mapping[str, object]) -> Iterator[Problem]:
    """Yield what is wrong with a name and its parameters; "" stands for the name itself."""
    member: Known | None = next((one for one in known(family) if one["name"] == name), None)
    if member is None:
        if _may_be_of_another_library(family, name):
            return
        yield "", unknown(WORDS[family], name, known_names(family))
        return
    accepted = {each["name"]: each for each in member["parameters"]}
    for key, value in params.items():
        if key in accepted:
            if why := _wrong_parameter(accepted[key], value):
                yield key, why
        else:
            hint = did_you_mean(key, accepted) if accepted else "; it takes none"
            yield str(key), f"{name} has no parameter {brief(key)}{hint}"


def _may_be_of_another_library(family: Family, name: str) -> bool:
    """Tell whether a name is torch's, or may be of another torchvision than registry.json knows."""
    if family == "optimizers":
        return name[:1].isupper()  # of torch.optim
    known_for = registered()["torchvision"]
    return family == "models" and not version("torchvision").startswith(f"{known_for}.")


def _wrong_parameter(parameter: KnownParameter, value: object) -> str:
    schema = cast(Schema, parameter["schema"])
    if isinstance(value, dict) or "anyOf" in schema:  # a schedule, or one of several kinds
        return ""
    return _wrong(schema, value)


def _wrong(schema: Schema, value: object) -> str:
    """Return what is wrong with a plain value, in the words of the full check; "" if nothing."""
    kind = schema.get("type")
    if "enum" in schema:
        if isinstance(value, str) and value in schema["enum"]:
            return ""
        choices = ", ".join(map(repr, schema["enum"]))
        return _said("literal_error", value, expected=choices)
    if kind == "string":
        return "" if isinstance(value, str) else _said("string_type", value)
    if kind == "boolean":
        return "" if isinstance(value, bool) else _said("bool_type", value)
    if kind == "array":
        return "" if isinstance(value, list) else _said("list_type", value)
    if kind not in NUMBERS:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _said("int_type" if kind == "integer" else "float_type", value)
    if kind == "integer" and isinstance(value, float):
        return _said("int_type", value)
    return _out_of_range(schema, value)


def _out_of_range(schema: Schema, value: float) -> str:
    """Return what is wrong with a number whose kind is right."""
    exact = int if schema.get("type") == "integer" else float  # as messages write limits
    if "minimum" in schema and value < schema["minimum"]:
        return _said("greater_than_equal", value, ge=exact(schema["minimum"]))
    if "maximum" in schema and value > schema["maximum"]:
        return _said("less_than_equal", value, le=exact(schema["maximum"]))
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        return _said("greater_than", value, gt=exact(schema["exclusiveMinimum"]))
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        return _said("less_than", value, lt=exact(schema["exclusiveMaximum"]))
    return ""


def _said(error: str, value: object, **limits: object) -> str:
    """Return what the full check says of a value."""
    details = {"type": error, "loc": (), "msg": error, "input": value, "ctx": limits}
    return plain_message(cast("ErrorDetails", details))

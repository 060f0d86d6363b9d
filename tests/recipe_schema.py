"""JSON Schema of recipes, for editors: made of the sections and of registry.json.

It knows every key, every name with its parameters, and what values they take. What one key asks of
another is checked by qtool alone. Under `extends` a section may be a part of one, so that keys that
are needed in the end are not asked for inside sections.
"""

import json
from collections.abc import Mapping
from typing import cast

from pydantic import BaseModel, ValidationError

from qtool.known import FAMILIES, Family, Known
from qtool.recipe import Recipe
from tests import self_description as said

Schema = dict[str, object]

UNKNOWN = "no_such_name"
OWN_PART = {"type": "string", "pattern": ":"}  # file.py:name, package.module:name, timm:name
NAMES_ELSEWHERE: dict[Family, Schema] = {"optimizers": {"type": "string", "pattern": "^[A-Z]"}}
TAKES_OWN = {"models", "data", "estimators", "losses", "optimizers", "augmentations"}
# that name one of a family
SECTIONS: dict[str, Family] = {"Model": "models", "Data": "data", "Teacher": "models"}
BESIDE: dict[str, Schema] = {  # what a use of a schedule takes beside the schedule's parameters
    "learning_rate": {"warmup": {"type": "number", "minimum": 0, "exclusiveMaximum": 1}},
    "blend": {"phases": {"type": "integer", "minimum": 1, "maximum": 100}},
}
FAMILY_WORDS: dict[str, Family] = {
    "estimator": "estimators",
    "range": "ranges",
    "schedule": "schedules",
    "loss": "losses",
    "optimizer": "optimizers",
    "augmentation": "augmentations",
}
CHOICE = "#/$defs/Choice"
HEAD = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "A recipe of qtool",
}


def recipe_schema(families: Mapping[Family, list[Known]]) -> str:
    """Return the schema as text.

    Args:
        families: as registry.json has them.
    """
    schema = cast(Schema, Recipe.model_json_schema())
    parts = cast(dict[str, Schema], schema.pop("$defs"))
    del parts["Choice"]
    used: dict[str, Schema] = {}
    for key, section in _sections().items():
        if key in parts:
            _name_choices(parts[key], section, used)
    _name_choices(schema, Recipe, used)
    for key, family in SECTIONS.items():
        parts[key] = _naming(parts[key], families[family])
    for key in ("weights", "activations"):
        side = {"anyOf": [{"$ref": f"#/$defs/{key.title()[:-1]}Quantization"}, {"type": "null"}]}
        _properties(parts["Override"])[key] = side | {"description": f"{key} that differ"}
    properties = _properties(schema)
    properties["quantization"] = {"anyOf": [properties["quantization"], {"type": "null"}]}
    extends = {
        "type": "string",
        "description": "Another recipe, of which this one says what differs.",
    }
    schema["properties"] = {"extends": extends, **properties}
    schema.pop("required")
    made = {name: _family(families[_family_of(name)], _family_of(name), name) for name in used}
    made["schedules"] = _family(families["schedules"], "schedules", "schedules")
    defs = {**parts, **made}
    for part in defs.values():
        _tidy(part)
    _tidy(schema)
    schema["anyOf"] = [{"required": ["extends"]}, {"required": ["model", "data", "training"]}]
    return json.dumps(HEAD | schema | {"$defs": defs}, indent=1, ensure_ascii=False) + "\n"


def _sections() -> dict[str, type[BaseModel]]:
    """Return every section of a recipe by the name of its class."""
    found: dict[str, type[BaseModel]] = {}
    for key, _ in said.recipe_keys():
        section = said.section_of(key)
        found[section.__name__] = section
    return found


def _properties(schema: Schema) -> dict[str, Schema]:
    return cast(dict[str, Schema], schema["properties"])


def _name_choices(schema: Schema, section: type[BaseModel], used: dict[str, Schema]) -> None:
    """Put the family's choices in the place of any choice, in a section's schema."""
    for key, given in _properties(schema).items():
        if CHOICE not in json.dumps(given):
            continue
        family = _family_asked(section, key)
        name = key if key in BESIDE else family
        used[name] = {}
        text = json.dumps(given).replace(CHOICE, f"#/$defs/{name}")
        made = cast(Schema, json.loads(text))
        if _takes_numbers(section, key):
            what = {"description": made.pop("description")} if "description" in made else {}
            made = {"anyOf": [made, {"type": "number"}], **what}
        _properties(schema)[key] = made


def _family_asked(section: type[BaseModel], key: str) -> Family:
    """Return the family that a key chooses from, by what the section says of a wrong name."""
    for value in (UNKNOWN, [UNKNOWN]):
        try:
            section.model_validate({key: value, "name": "digits"})
        except ValidationError as error:
            for word, family in FAMILY_WORDS.items():
                if f"unknown {word} '{UNKNOWN}'" in str(error):
                    return family
    raise ValueError(f"{section.__name__}.{key}: chooses from no family that is known here")


def _takes_numbers(section: type[BaseModel], key: str) -> bool:
    """Tell whether a plain number stands for a choice."""
    try:
        section.model_validate({key: 0.5})
    except ValidationError as error:
        return all(
            item["loc"][:1] != (key,) and f"{key}:" not in item["msg"] for item in error.errors()
        )
    return True


def _family_of(name: str) -> Family:
    return "schedules" if name in BESIDE else cast(Family, name)


def _family(choices: list[Known], family: Family, use: str) -> Schema:
    """Return what chooses one of a family: its name, or a mapping with its parameters."""
    names: list[Schema] = [{"enum": [choice["name"] for choice in choices]}]
    if family in TAKES_OWN:
        names.append(OWN_PART)
    names += [each for key, each in NAMES_ELSEWHERE.items() if key == family]
    mappings: list[Schema] = [_mapping(choice, use) for choice in choices]
    mappings += [
        {"type": "object", "properties": {"name": other}, "required": ["name"]}
        for other in names[1:]
    ]
    return {"anyOf": [*names, *mappings]}


def _mapping(choice: Known, use: str) -> Schema:
    parameters, needed = _parameters(choice)
    beside = BESIDE.get(use, {})
    if use == "blend":
        needed = []  # it goes from 0 to 1
    return {
        "type": "object",
        "description": choice["summary"],
        "properties": {"name": {"const": choice["name"]}, **parameters, **beside},
        "required": ["name", *needed],
        "additionalProperties": False,
    }


def _parameters(choice: Known) -> tuple[Schema, list[str]]:
    """Return the schemas of a choice's parameters, and which must be given."""
    made: Schema = {}
    for parameter in choice["parameters"]:
        schema: Schema = dict(parameter["schema"])
        if parameter.get("scheduled"):
            schema = {"anyOf": [schema, {"$ref": "#/$defs/schedules"}]}
        if "default" in parameter:
            schema["default"] = parameter["default"]
        if parameter["what"]:
            schema["description"] = parameter["what"]
        made[parameter["name"]] = schema
    needed = [each["name"] for each in choice["parameters"] if "default" not in each]
    return made, needed


def _naming(section: Schema, choices: list[Known]) -> Schema:
    """Return a section that names one of a family, whose parameters stand among its keys."""
    fields = {key: value for key, value in _properties(section).items() if key != "name"}
    groups: dict[str, tuple[list[str], Schema, list[str]]] = {}
    for choice in choices:
        parameters, needed = _parameters(choice)
        group = groups.setdefault(json.dumps(parameters), ([], parameters, needed))
        group[0].append(choice["name"])
    ways: list[Schema] = [
        {
            "properties": {"name": {"enum": names}, **fields, **parameters},
            "required": ["name", *needed],
            "additionalProperties": False,
        }
        for names, parameters, needed in groups.values()
    ]
    ways.append({"properties": {"name": OWN_PART, **fields}, "required": ["name"]})
    ways.append({"properties": fields, "not": {"required": ["name"]}})
    return {"type": "object", "description": section["description"], "anyOf": ways}


def _tidy(schema: object) -> None:
    """Take away titles, which repeat keys, and what `extends` may leave to the other recipe."""
    if isinstance(schema, list):
        for item in schema:
            _tidy(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        if isinstance(schema.get("description"), str):
            schema["description"] = " ".join(schema["description"].split())
        if "name" not in schema.get("required", ["name"]) and "anyOf" not in schema:
            del schema["required"]
        for value in schema.values():
            _tidy(value)


assert set(FAMILY_WORDS.values()) | set(SECTIONS.values()) <= set(FAMILIES)

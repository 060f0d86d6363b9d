"""Files of the package that are made of the code: `python -m tests.docs --write` writes them.

registry.json: the members of every table that a recipe chooses from, to be read without torch.
keys.json: the sections of a recipe, likewise.
recipe.schema.json: JSON Schema of recipes, for editors.
"""

import json
import re
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torchvision
from pydantic import TypeAdapter
from torchvision import models
from torchvision.transforms import v2

from qtool.data.augmentations import OWN, TRANSFORMS
from qtool.data.datasets import DATASETS
from qtool.data.mixing import MIXES
from qtool.export.targets.target import TARGETS
from qtool.known import FAMILIES, FILE, Family, Known, KnownParameter, Registered
from qtool.models.papers import MODELS
from qtool.models.vision import Stem, model_names, model_problems
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.schedules import MOVES, SCHEDULES
from qtool.recipe import Recipe
from qtool.recipe.early import FILE as KEYS
from qtool.recipe.early import Schema
from qtool.settings.section import InTable
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS
from tests import self_description as said
from tests.recipe_schema import recipe_schema
from tests.self_description import Choices

Json = dict[str, Any]
TABLES: dict[Family, Choices] = {
    "models": MODELS,
    "data": DATASETS,
    "estimators": ESTIMATORS,
    "ranges": RANGES,
    "schedules": SCHEDULES,
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "roundings": ROUNDINGS,
    "targets": TARGETS,
}
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_+")  # of reStructuredText, as torchvision has them
_STEM = "small: 3x3, no stride, no pooling; auto: small for images of up to 64 pixels"
_CODE = re.compile(r":?`+([^`]*)`+_*")


def registry_json() -> str:
    """Return registry.json as it should be, a choice in each line."""
    lines = [
        f'"torchvision": {json.dumps(_torchvision())}',
        '"families": {\n' + _rows(families()),
    ]
    return "{\n" + ",\n".join(lines) + "\n}}\n"


def recipe_schema_json() -> str:
    """Return recipe.schema.json as it should be."""
    return recipe_schema(families())


@cache
def families() -> dict[Family, list[Known]]:
    """Return the members of every table, with what may be said of them."""
    made = {
        family: [_known(table, name) for name in said.names_of(table)]
        for family, table in TABLES.items()
    }
    made["models"] = made["models"] + _published()
    made["augmentations"] = _augmentations()
    return {family: made[family] for family in FAMILIES}


def _augmentations() -> list[Known]:
    """Return the data set's own, the mixes, and the transforms of torchvision."""
    own = Known(name=OWN, summary="The data set's own crops and flips", parameters=[])
    return [own, *(_known(MIXES, name) for name in MIXES.names()), *map(_transform, TRANSFORMS)]


def _transform(name: str) -> Known:
    kind: type[object] = getattr(v2, name)
    parameters = []
    for key, given in signature(kind).parameters.items():
        made = KnownParameter(name=key, schema={}, what="")
        if given.default is not given.empty:
            made["default"] = _plain(given.default)
        parameters.append(made)
    return Known(name=name, summary=_first_line(kind.__doc__), parameters=parameters)


def _plain(value: object) -> object:
    """Return a default as YAML has it."""
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _rows(families: dict[Family, list[Known]]) -> str:
    made = []
    for family, choices in families.items():
        rows = ",\n".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        made.append(f"{json.dumps(family)}: [\n{rows}\n]")
    return ",\n".join(made)


def _known(table: Choices, name: str) -> Known:
    what, kinds = said.described(table, name), table.parameters(name)
    parameters = [_parameter(key, kind, what.arguments.get(key, "")) for key, kind in kinds.items()]
    return Known(name=name, summary=what.summary, parameters=parameters)


def _parameter(name: str, given: Parameter, what: str) -> KnownParameter:
    kind = object if given.annotation is given.empty else given.annotation
    made = KnownParameter(name=name, schema=TypeAdapter(kind).json_schema(), what=what)
    if given.default is not given.empty:
        made["default"] = given.default
    if MOVES in getattr(kind, "__metadata__", ()):
        made["scheduled"] = True
    return made


def _torchvision() -> str:
    return ".".join(torchvision.__version__.split(".")[:2])


def _published() -> list[Known]:
    """Return torchvision's models; those that the file has where another torchvision is here."""
    if FILE.exists():
        kept: Registered = json.loads(FILE.read_text(encoding="utf-8"))
        if kept["torchvision"] != _torchvision():
            return [each for each in kept["families"]["models"] if each["name"] not in MODELS]
    return [_of_torchvision(name) for name in model_names() if name not in MODELS]


def _of_torchvision(name: str) -> Known:
    weights = models.get_model_weights(name)
    meta = weights["DEFAULT"].meta
    names = list(dict.fromkeys(["DEFAULT", *weights.__members__]))
    accuracy = round(meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100, 5)
    stem = KnownParameter(
        name="stem", schema=TypeAdapter(Stem).json_schema(), what=_STEM, default="auto"
    )
    parameters = [] if model_problems(name, {"stem": "small"}) else [stem]
    return Known(
        name=name,
        summary=_first_line(models.get_model_builder(name).__doc__),
        parameters=parameters,
        weights=names,
        size=meta["num_params"],
        accuracy=accuracy,
    )


def _first_line(docstring: str | None) -> str:
    """Return the first sentences of a docstring in reStructuredText, as plain text."""
    first = cleandoc(docstring or "").split("\n\n")[0]
    return " ".join(_CODE.sub(r"\1", _LINK.sub(r"\1", first)).split()).rstrip(".")


# what `qtool.recipe.early` reads of a JSON Schema
KEPT = [*get_type_hints(Schema), "$ref"]
NAMED = {"Model": "models", "Data": "data", "Teacher": "models"}
SIDES = {"weights": "WeightQuantization", "activations": "ActivationQuantization"}


def keys_json() -> str:
    """Return keys.json as it should be: the sections of a recipe, each with its keys."""
    schema = Recipe.model_json_schema()
    return json.dumps(_trimmed(schema, schema["$defs"], "Recipe"), indent=1) + "\n"


def _trimmed(schema: Json, sections: Json, section: str, key: str = "") -> Json:
    """Return what is read of a schema, with sections in place of what refers to them."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name == "Choice":
            return {"family": family} if (family := _families().get((section, key))) else {}
        return _trimmed(sections[name], sections, name)
    made = {kept: value for kept, value in schema.items() if kept in KEPT}
    if "anyOf" in made:
        made["anyOf"] = [_trimmed(each, sections, section, key) for each in made["anyOf"]]
    if "items" in made:
        made["items"] = _trimmed(made["items"], sections, section, key)
    if "properties" in made:
        inner = made["properties"].items()
        made["properties"] = {k: _trimmed(each, sections, section, k) for k, each in inner}
    if section in NAMED and "properties" in made:
        made["named"] = NAMED[section]
    if section == "Override" and key in SIDES and made.get("type") == "object":
        side = _trimmed(sections[SIDES[key]], sections, SIDES[key])
        return {kept: value for kept, value in side.items() if kept != "required"}
    return made


@cache
def _families() -> dict[tuple[str, str], Family]:
    """Return which family a key of a section chooses from."""
    tables = {id(table): family for family, table in TABLES.items()}
    found = {}
    for section in said.sections():
        for key, hint in get_type_hints(section, include_extras=True).items():
            for table in _tables_in(hint):
                if id(table) in tables:
                    found[section.__name__, key] = tables[id(table)]
    return found


def _tables_in(hint: object) -> Iterator[object]:
    if isinstance(hint, InTable):
        yield hint.table
    metadata = getattr(hint, "__metadata__", ())
    for inner in (*get_args(hint), *metadata):
        yield from _tables_in(inner)


FILES: dict[Path, Callable[[], str]] = {
    FILE: registry_json,
    KEYS: keys_json,
    FILE.with_name("recipe.schema.json"): recipe_schema_json,
}

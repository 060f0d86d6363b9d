"""What the code says of itself: its docstrings, signatures, schemas, commands and contracts.

Documents are made of it (tests/docs.py), and held against it (tests/test_docs.py).
"""

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_group
from typer.testing import CliRunner

from qtool.cli import app
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.schedules import MOVES
from qtool.recipe import Recipe
from qtool.registry import Registry
from qtool.settings.section import Section

ROOT = Path(__file__).parents[1]
FORMULA = re.compile(r"\s*\S+ (=|<-) ")
Choices = Registry[Callable[..., object]]


class Documented(NamedTuple):
    """A docstring, taken apart: each part as one line, but for the lines of the formula."""

    summary: str
    formula: list[str]
    notes: list[str]
    reference: str
    arguments: dict[str, str]


def documented(docstring: str | None) -> Documented:
    """Read a docstring: summary, formula, notes, reference, and what it says of arguments."""
    summary, formula, notes, reference, arguments = "", [], [], "", {}
    for position, text in enumerate(re.split(r"\n\s*\n", docstring or "")):
        words = " ".join(text.split())
        if position == 0:
            summary = words
        elif FORMULA.match(text):
            formula += [" ".join(line.split()) for line in text.strip("\n").splitlines()]
        elif text.startswith("Args:"):
            found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
            arguments = {name: " ".join(said.split()) for name, said in found}
        elif words.startswith(("Reference: ", "Source: ")):
            reference = words.partition(": ")[2].rstrip(".")
        elif not words.startswith(("Raises:", "Returns:")):
            notes.append(words)
    return Documented(summary, formula, notes, reference, arguments)


def described(choices: Choices, name: str) -> Documented:
    """Read the docstring of a choice."""
    return documented(inspect.getdoc(choices[name]))


def module_docstring(path: Path) -> str:
    """Return the docstring of a module, without importing it."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


class Parameter(NamedTuple):
    """What a recipe may set of a choice: its name, with a default where there is one.

    Attributes:
        also: other words that it takes, and whether it takes a schedule.
        what: from the docstring, or "".
    """

    name: str
    default: str | None
    also: list[str]
    what: str


def parameters(choices: Choices, name: str) -> list[Parameter]:
    """Return the parameters of a choice."""
    found, said = [], described(choices, name).arguments
    for key, parameter in choices.parameters(name).items():
        kind, default = parameter.annotation, parameter.default
        also = [str(word) for word in words_of(kind) if word != default]
        also += ["a schedule"] if MOVES in getattr(kind, "__metadata__", ()) else []
        given = None if default is parameter.empty else plain(default)
        found.append(Parameter(key, given, also, said.get(key, "")))
    return found


def plain(value: object) -> str:
    """Return a value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def words_of(kind: object) -> tuple[object, ...]:
    """Return the words that a type allows, as far as it is made of words."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for inner in get_args(kind) if (found := words_of(inner))), ())


def names_of(choices: Choices) -> list[str]:
    """Return the names of a table, without those of users' own files that tests have loaded."""
    return [name for name in choices.names() if ":" not in name]


def recipe_keys(
    section: type[BaseModel] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that a recipe may hold, `[]` after lists, with its field."""
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None:
            yield f"{prefix}{name}", field
        else:
            listed = "[]" if get_origin(field.annotation) is list else ""
            yield from recipe_keys(inner, f"{prefix}{name}{listed}.")


def sections(section: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    """Yield the recipe and all sections in it."""
    yield section
    for field in section.model_fields.values():
        inner = _section_of(field.annotation)
        if inner is not None:
            yield from sections(inner)


def _section_of(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = map(_section_of, get_args(annotation))
    return next((section for section in found if section), None)


def section_of(key: str) -> type[BaseModel]:
    """Return the section that a key stands in."""
    section: type[BaseModel] = Recipe
    for part in key.replace("[]", "").split(".")[:-1]:
        section = _section_of(section.model_fields[part].annotation) or section
    return section


@cache
def estimators() -> list[dict[str, object]]:
    """Return what `qtool inspect estimators --json` says."""
    printed = CliRunner().invoke(app, ["inspect", "estimators", "--json"], catch_exceptions=False)
    entries = json.loads(printed.stdout)["estimators"]
    return [entry for entry in entries if entry["name"] in names_of(ESTIMATORS)]


def commands(name: str = "qtool", group: TyperGroup | None = None) -> dict[str, TyperCommand]:
    """Return every command by what a user types."""
    found: dict[str, TyperCommand] = {}
    group = group or get_group(app)
    for sub, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= commands(f"{name} {sub}", command)
        elif isinstance(command, TyperCommand):
            found[f"{name} {sub}"] = command
    return found


def options(command: TyperCommand) -> dict[TyperOption, list[str]]:
    """Return the options of a command, each with what a user may type for it."""
    given = [p for p in command.params if isinstance(p, TyperOption) and "--help" not in p.opts]
    return {option: [*option.opts, *option.secondary_opts] for option in given}


def arguments(command: TyperCommand) -> list[str]:
    """Return the arguments of a command as `--help` names them."""
    given = [p for p in command.params if isinstance(p, TyperArgument)]
    return [f"{p.name}".upper() + " ..." * (p.nargs == -1) for p in given]


@cache
def contracts() -> list[dict[str, object]]:
    """Return the import contracts, as pyproject.toml has them."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    return tools["importlinter"]["contracts"]

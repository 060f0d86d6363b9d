"""A recipe as plain data: read as YAML and changed by `--set`; opens without torch."""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

import yaml

from qtool.errors import RecipeError
from qtool.files.kinds import Kind, other_kind
from qtool.files.reading import read_bounded
from qtool.files.yaml_data import MOST_BYTES, parse_yaml
from qtool.problems import brief, shown

A_RECIPE = "the path of a recipe"
TAKEN = (Kind.RECIPE, Kind.JSON)  # which YAML holds, too
SECTIONS = ("seed", "model", "data", "quantization", "training")  # the keys of `Recipe`
Node = dict[str, object] | list[object]  # of YAML data: what --set walks through


def read_recipe_file(path: Path) -> dict[str, object]:
    """Return the plain data of a recipe file.

    Raises:
        RecipeError: If the file is of another kind, cannot be read or is no mapping.
    """
    if why := other_kind(path, TAKEN, A_RECIPE):
        raise RecipeError(f"{path}: {why}")
    try:
        data = parse_yaml(read_bounded(path, MOST_BYTES).decode())
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file or folder; give {A_RECIPE}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file; a recipe is YAML in UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{path}: not YAML: {problem}") from error
    except ValueError as error:
        raise RecipeError(f"{path}: {error}; a recipe is a short text") from error
    if data is None:
        raise RecipeError(f"{path}: empty; a recipe has the keys {', '.join(SECTIONS)}")
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else shown(data)
        raise RecipeError(
            f"{path}: holds {what}; a recipe is a mapping with the keys {', '.join(SECTIONS)}"
        )
    return data


def override(data: Mapping[str, object], assignments: Sequence[str]) -> dict[str, object]:
    """Return a copy of a recipe's data with every `key=value` set, as `--set` writes them.

    A dotted key walks into sections; a number picks an item of a list. A choice written as a
    plain name, such as `estimator: relu`, becomes `{name: relu}` where a parameter is set.

    Raises:
        RecipeError: If an assignment is not `key=value`, its value is not YAML, or there is
            nothing at its place to set a key in.
    """
    made = dict(data)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        said = f"--set {brief(assignment)}"
        path = key.strip().split(".")
        if not equals or not all(path):
            raise RecipeError(f"{said}: write key=value, such as training.epochs=3")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise RecipeError(f"{said}: the value is not YAML: {problem}") from error
        _set(made, path, value, said)
    return made


def with_values(
    data: Mapping[str, object], values: Mapping[str, object], said: str
) -> dict[str, object]:
    """Return a copy of a recipe's data with values at dotted keys, set as `override` does.

    Args:
        data: of the recipe.
        values: key -> value.
        said: what asks for them, for messages.

    Raises:
        RecipeError: If there is nothing at a place to set a key in.
    """
    made = dict(data)
    for key, value in values.items():
        _set(made, key.split("."), value, f"{said}: {key}")
    return made


def _set(data: dict[str, object], path: list[str], value: object, said: str) -> None:
    """Set one value, as was `said`; sections on the way are copied: an alias may share them."""
    node: Node = data
    for position, part in enumerate(path):
        if isinstance(node, list) and (not part.isdecimal() or int(part) >= len(node)):
            place = ".".join(path[:position])
            raise RecipeError(
                f"{said}: {place} is a list of {len(node)}; pick one by its number, from 0"
            )
        if position == len(path) - 1:
            _put(node, part, value)
            return
        inner = _get(node, part)
        made: Node
        if isinstance(inner, dict | list):
            made = copy(inner)
        elif inner is None or isinstance(inner, str):
            made = {} if inner is None else {"name": inner}
        else:
            place = ".".join(path[: position + 1])
            raise RecipeError(f"{said}: {place} is {shown(inner)}, which has no keys")
        _put(node, part, made)
        node = made


def _get(node: Node, key: str) -> object:
    return node[int(key)] if isinstance(node, list) else node.get(key)


def _put(node: Node, key: str, value: object) -> None:
    if isinstance(node, list):
        node[int(key)] = value
    else:
        node[key] = value

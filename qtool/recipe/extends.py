"""`extends: other.yaml`: a recipe that says only what of another one is different; loads no torch.

Sections are joined key by key, down to the choices: a choice of the same name takes the other
parameters of the one it extends, and a choice of another name takes its place. Lists, such as
overrides, take the place of lists. A model or data set of another name leaves behind what only the
old one has, and a blend and an estimator take each other's place, but where there are both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from qtool.errors import RecipeError
from qtool.known import Family, known
from qtool.problems import shown
from qtool.recipe.plain import read_recipe_file

EXTENDS = "extends"
MOST = 10  # recipes in a row
_OWN: dict[str, Family] = {"model": "models", "data": "data"}  # sections that name one of a family
_EXCLUDE = {"blend": "estimator", "estimator": "blend"}


class Extended(NamedTuple):
    """A recipe file, and what it says itself."""

    path: Path
    data: dict[str, object]


def chain_of(path: Path) -> list[Extended]:
    """Return a recipe file, the one that it extends, the one that this extends, and so on.

    Raises:
        RecipeError: If one of them cannot be read, is no recipe, or extends itself in the end.
    """
    found, seen = [], [path]
    while True:
        try:
            data = read_recipe_file(path)
        except RecipeError as error:
            by = f"\n  {found[-1].path} extends it" if found else ""
            raise RecipeError(f"{error}{by}") from error
        said = data.pop(EXTENDS, None) if EXTENDS in data else None
        found.append(Extended(path, data))
        if said is None:
            return found
        if not isinstance(said, str) or not said.strip():
            raise RecipeError(
                f"{path}: {EXTENDS}: {shown(said)} is no path; give that of a recipe, such as "
                "../base.yaml"
            )
        path = path.parent / Path(said).expanduser()
        if any(_same(path, other) for other in seen):
            row = " extends ".join(str(each) for each in [*seen, path])
            raise RecipeError(f"{seen[0]}: {EXTENDS}: goes in a circle: {row}")
        seen.append(path)
        if len(seen) > MOST:
            raise RecipeError(f"{seen[0]}: {EXTENDS}: more than {MOST} recipes in a row")


def _same(path: Path, other: Path) -> bool:
    try:
        return path.resolve() == other.resolve()
    except (OSError, RuntimeError):  # links in a circle, which reading it will tell
        return False


def joined(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return a recipe's data under those of one that extends it."""
    made = dict(base)
    for key, value in own.items():
        below = made.get(key)
        if not isinstance(below, dict) or not isinstance(value, dict):
            made[key] = value
        elif key in _OWN:
            made[key] = _join(_without_parameters(below, value, _OWN[key]), value)
        else:
            made[key] = _join(below, value)
    return made


def _join(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return a section under another."""
    both = all(base.get(key) is not None for key in _EXCLUDE)
    gone = set() if both else {o for key, o in _EXCLUDE.items() if own.get(key) is not None}
    made = {key: value for key, value in base.items() if key not in gone}
    for key, value in own.items():
        below = made.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            made[key] = _choice(below, value)
        else:
            made[key] = value
    return made


def _choice(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return a choice, or a section within one, under another."""
    other = "name" in own and own["name"] != base.get("name")
    return dict(own) if other else _join(base, own)


def _without_parameters(
    base: Mapping[str, object], own: Mapping[str, object], family: Family
) -> dict[str, object]:
    """Return a section without the parameters of the name in it, where another has a new name."""
    if own.get("name", base.get("name")) == base.get("name"):
        return dict(base)
    listed = [each for each in known(family) if each["name"] == base.get("name")]
    left = {parameter["name"] for each in listed for parameter in each["parameters"]}
    return {key: value for key, value in base.items() if key not in left}

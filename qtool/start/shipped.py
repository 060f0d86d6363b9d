"""The recipes that come with qtool, by their names, and copies of them; loads no torch."""

from pathlib import Path

import qtool
from qtool.errors import InputError
from qtool.files.whole import refuse_unless_writable, write_text
from qtool.problems import did_you_mean
from qtool.reports.new_recipes import NewRecipe

IN_PACKAGE = "recipes"


def shipped() -> dict[str, Path]:
    """Return the files of all recipes that come with qtool, by name: those of digits first."""
    package = Path(qtool.__file__).parent
    places = [package / IN_PACKAGE, package.parent / IN_PACKAGE]  # a wheel, or a checkout
    folder = next((place for place in places if (place / "digits.yaml").is_file()), None)
    found = [] if folder is None else sorted(folder.rglob("*.yaml"), key=_depth)
    return {path.stem: path for path in found}


def _depth(path: Path) -> tuple[int, str]:
    return len(path.parts), path.name


def copy_shipped(name: str, output: Path | None) -> NewRecipe:
    """Write a copy of a recipe that ships; the commands in its comments name the copy.

    Raises:
        InputError: If there is none of that name, or the file is there already.
        WriteError: If it cannot be written.
    """
    recipes = shipped()
    if name not in recipes:
        raise InputError(f"no recipe {name!r} comes with qtool{did_you_mean(name, recipes)}")
    path = output or Path(f"{name}.yaml")
    refuse_to_overwrite(path)
    source = recipes[name]
    parts = source.parts
    from_root = "/".join(parts[len(parts) - 1 - parts[::-1].index(IN_PACKAGE) :])
    write_text(path, source.read_text(encoding="utf-8").replace(from_root, str(path)))
    return NewRecipe(recipe=str(path), made_from=name)


def refuse_to_overwrite(path: Path) -> None:
    """Check that a new recipe can be written at a path, where nothing is yet.

    Raises:
        InputError: If it cannot.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path}: not the name of a recipe; give --output a NAME.yaml")
    refuse_unless_writable(path, "give --output the name of a file, NAME.yaml")
    if path.exists():
        raise InputError(f"{path}: is there already; choose another --output")

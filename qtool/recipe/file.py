"""A recipe as a file: what `plain` reads is checked in full, and written."""

from collections.abc import Mapping
from pathlib import Path

from qtool.files.whole import write_text
from qtool.files.yaml_data import written_yaml
from qtool.models.weights import is_weights_file
from qtool.problems import report
from qtool.recipe.extends import chain_of, joined
from qtool.recipe.parts import load_parts
from qtool.recipe.places import at, put
from qtool.recipe.plain import override, read_recipe_file
from qtool.recipe.recipe import Recipe
from qtool.settings.section import check
from qtool.settings.user_code import UserCode

WEIGHTS = ("model.weights", "training.teacher.weights")  # places that may name a file


def load_recipe(
    path: Path,
    assignments: list[str] | None = None,
    *,
    code: UserCode | None = None,
    extends: bool = True,
) -> Recipe:
    """Read and check a recipe file, with the assignments of `--set`.

    Args:
        path: of the file.
        assignments: of `--set`.
        code: where the user's own files are looked for, and whether they run; None: beside the
            recipe, and those that it extends, and they do.
        extends: it may extend others; that of a run, which may be anyone's, is whole.

    Raises:
        RecipeError: If the file cannot be read. Lists every problem with its dotted place.
    """
    if extends:
        data, code = read_extended(path), code or code_beside(path)
    else:
        data = with_found_paths(read_recipe_file(path), path.parent)
    return check_recipe(override(data, assignments or []), path, code=code)


def read_extended(path: Path) -> dict[str, object]:
    """Return the data of a recipe file and of those that it extends, joined.

    Relative paths are those of the file that says them.

    Raises:
        RecipeError: As `chain_of`.
    """
    own, *others = [with_found_paths(data, each.parent) for each, data in chain_of(path)]
    for each in others:
        own = joined(each, own)
    return own


def code_beside(path: Path) -> UserCode:
    """Return what holds for a user's recipe: files beside it and those that it extends, which run.

    Raises:
        RecipeError: As `chain_of`.
    """
    return UserCode.beside(*(each.path for each in chain_of(path)))


def with_found_paths(data: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return a recipe's data whose relative paths, of `data.root` and weights, are absolute.

    They are those of files and folders beside the recipe, or else in the working directory; what is
    in neither stays as it is.

    Args:
        data: of the recipe.
        folder: of the recipe.
    """
    found: dict[str, object] = {}
    for place in ("data.root", *WEIGHTS):
        value = at(data, place)
        if not isinstance(value, str) or Path(value).is_absolute():
            continue
        if place in WEIGHTS and not is_weights_file(value):
            continue
        here = [path for path in (folder / value, Path(value)) if value and _exists(path)]
        if here:
            found[place] = str(here[0].absolute())
    return put(data, found)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file
        return False


def check_recipe(
    data: Mapping[str, object], path: Path, also: str = "", *, code: UserCode | None = None
) -> Recipe:
    """Return a recipe's data as a Recipe; the user's own parts are loaded first.

    Args:
        data: of the recipe.
        path: of its file.
        also: what was done to the data, for messages.
        code: where the user's own files are looked for, and whether they run; None: beside the
            recipe, and they do.

    Raises:
        RecipeError: Lists every problem with its dotted place.
    """
    if found := load_parts(data, code or UserCode.beside(path)):
        raise report(f"{path}{also}", found)
    return check(Recipe, data, f"{path}{also}")


def recipe_inside(path: Path, data: object, code: UserCode) -> Recipe:
    """Return the recipe that a file of another kind holds; the user's own parts are loaded first.

    Args:
        path: of the file.
        data: of the recipe, as the file has it.
        code: where the user's own parts are looked for, and which run.

    Raises:
        RecipeError: Lists every problem with its dotted place.
    """
    source = f"{path}, its recipe"
    if isinstance(data, dict) and (found := load_parts(data, code)):
        raise report(source, found)
    return check(Recipe, data, source)


def write_recipe(recipe: Recipe, path: Path, comment: str) -> None:
    """Write the resolved recipe in one move, under a comment of one line."""
    write_text(path, f"# {comment}\n{written_yaml(recipe.as_dict())}")

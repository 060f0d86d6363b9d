"""The arms of comparisons: recipes that differ in one thing only."""

from pathlib import Path
from typing import Any

from qtool.errors import InputError
from qtool.files.whole import refuse_unless_makeable
from qtool.recipe.file import check_recipe, override, read_recipe_file
from qtool.recipe.recipe import Recipe
from qtool.runs import build
from qtool.runs.folder import is_run_folder


def refuse_repeated(names: list[str], option: str, what: str) -> None:
    """Check that no arm is named twice.

    Raises:
        InputError: If one is; names the option, and what the arms are.
    """
    if len(set(names)) < len(names):
        raise InputError(f"{option} {','.join(names)}: {what} is named twice")


def comparison_folder(output: Path | None, source: Path, kind: str) -> Path:
    """Return the folder of a comparison, which need not be there yet.

    Raises:
        InputError: If it cannot be made, or is a run's.
    """
    folder = output or Path("runs") / f"{source.stem}-{kind}"
    refuse_unless_makeable(folder)
    if is_run_folder(folder):
        raise InputError(f"{folder}: holds a run; choose another --output for the comparison")
    return folder


def read_base(source: Path, assignments: list[str] | None) -> tuple[dict[str, Any], Recipe]:
    """Return what the arms of a comparison share: the recipe's data, and the recipe."""
    data = override(read_recipe_file(source), assignments or [])
    recipe = check_recipe(data, source)
    build.check_against_network(recipe, str(source))
    return data, recipe


def chosen_seeds(recipe: Recipe, seeds: int | list[int]) -> list[int]:
    """Return the seeds; where only their number is given, from the recipe's own on."""
    return seeds if isinstance(seeds, list) else [recipe.seed + k for k in range(seeds)]


def sections_of(data: dict[str, Any], side: str) -> dict[str, dict[str, Any]]:
    """Return a recipe's sections on weights or activations by where they stand, overrides' last."""
    section = data.get("quantization") or {}
    places = {"quantization": section}
    for index, own in enumerate(section.get("overrides") or []):
        places[f"quantization.overrides.{index}"] = own
    return {f"{key}.{side}": place[side] for key, place in places.items() if place.get(side)}


def rate_of(schedule: dict[str, Any]) -> float:
    """Return the learning rate that a schedule is known by: where it starts."""
    if "values" in schedule:
        return float(schedule["values"][0])
    return float(schedule.get("start", schedule.get("value", 0.0)))

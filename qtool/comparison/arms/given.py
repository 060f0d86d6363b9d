"""Arms that the user writes out: recipes that may differ in any of their keys."""

import re
from collections import Counter
from collections.abc import Sequence

from qtool.comparison.arms.assigned import assignments_of
from qtool.comparison.arms.compared import ComparedArm
from qtool.comparison.question import ComparisonRequest, read_base
from qtool.errors import InputError
from qtool.problems import brief
from qtool.runs.built import build

OPTION = "--arm"
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9 _.+@-]{0,58}[A-Za-z0-9_+@-])?")
TAKEN = ("tuning",)  # a folder beside those of the arms


def given_arms(request: ComparisonRequest, texts: Sequence[str]) -> list[ComparedArm]:
    """Return the arms that texts such as `wide: quantization.weights.bits=8` describe.

    Args:
        request: of which recipe.
        texts: a name, a colon, and key=value, parted by commas; none for the recipe as it is. The
            first arm is the one that the others are held against.

    Raises:
        InputError: If a text says no arm, or two of them have one name.
        RecipeError: If an arm's recipe is wrong; lists every problem.
    """
    base, arms = read_base(request), list[ComparedArm]()
    for text in texts:
        name, colon, changes = text.partition(":")
        name = name.strip()
        if not colon or "=" in name:
            raise InputError(f"{OPTION} {brief(text)!r}: write it as 'name: key=value, key=value'")
        _refuse_unsafe(name)
        said = f"{OPTION} {name}"
        arm = ComparedArm(name, base, base.data).changed(assignments_of(changes, said), said)
        recipe = arm.recipe(base.recipe.seed)
        build.check_against_network(recipe, f"{base.source} with {name}")
        arms.append(arm)
    folders = Counter(arm.name.lower() for arm in arms)
    if same := [arm.name for arm in arms if folders[arm.name.lower()] > 1]:
        raise InputError(f"{OPTION}: {' and '.join(same)} would be one folder; rename one")
    return arms


def _refuse_unsafe(name: str) -> None:
    """Check that an arm's name can be that of a folder, on any system.

    Raises:
        InputError: If it cannot.
    """
    if not NAME.fullmatch(name) or name.lower() in TAKEN:
        why = "is taken" if name.lower() in TAKEN else "cannot be a folder's name"
        raise InputError(
            f"{OPTION} {brief(name)!r}: {why}; take up to 60 letters, digits, blanks, _ . + @ -"
        )

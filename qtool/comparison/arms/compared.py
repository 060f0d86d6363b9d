"""The arms of a comparison: recipes that are the same on every seed but for the seed.

estimators, schedules and given_arms make them; matching and tuning change them before they train.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qtool.comparison.execution.trials import ComparisonFolder, Trial
from qtool.comparison.question import Base
from qtool.recipe.file import check_recipe
from qtool.recipe.places import put
from qtool.recipe.plain import with_values
from qtool.recipe.recipe import Recipe


@dataclass(frozen=True)
class ComparedArm:
    """One compared choice.

    Attributes:
        name: as it is shown, and its folder's.
        base: what it shares with the others.
        data: its recipe's plain data, but for the seed.
    """

    name: str
    base: Base
    data: Mapping[str, object]

    def changed(self, changes: Mapping[str, object], said: str) -> "ComparedArm":
        """Return the arm with other values at dotted keys of its recipe, set as `--set` does.

        Args:
            changes: key -> value.
            said: what asks for them, for messages.

        Raises:
            RecipeError: If there is nothing at a place to set a key in.
        """
        return replace(self, data=with_values(self.data, changes, said))

    def recipe(self, seed: int, also: str = "") -> Recipe:
        """Return its recipe on a seed, checked.

        Args:
            seed: of the run.
            also: what else was done to it, for messages.

        Raises:
            RecipeError: Lists every problem with its dotted place.
        """
        data, base = put(self.data, {"seed": seed}), self.base
        return check_recipe(data, base.source, f" with {self.name}{also}", code=base.code)


def trials_of(arms: Sequence[ComparedArm], folder: ComparisonFolder) -> list[Trial]:
    """Return one trial for each arm and seed, in the order of the arms.

    Raises:
        RecipeError: If an arm's recipe is wrong; lists every problem.
    """
    return [folder.trial(arm.name, arm.recipe(seed)) for arm in arms for seed in arm.base.seeds]

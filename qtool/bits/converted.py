"""Widths of a recipe that is converted without training: by its budget, or by `--max-drop`."""

from pathlib import Path

import torch

from qtool.bits.chosen import Widths
from qtool.errors import InputError
from qtool.recipe.recipe import Recipe
from qtool.reports.results import Conversion
from qtool.runs.access import Access
from qtool.runs.kept.folder import OVERRIDES, SENSITIVITY, report_beside


class WidthsToConvert:
    """Chooses widths on the way from a recipe to an integer model, and keeps them beside it."""

    def __init__(self, source: str, max_drop: float | None) -> None:
        """Take what is asked for.

        Args:
            source: run folder or recipe.
            max_drop: points of accuracy that may be lost; None: what the recipe has.
        """
        self._source, self._max_drop = source, max_drop
        self._widths: Widths | None = None
        self._path = Path()

    def of(self, recipe: Recipe, path: Path, device: torch.device, access: Access) -> Recipe:
        """Return a recipe with its widths chosen, whose integer model goes to a path."""
        widths = Widths(device, access, self._source, self._max_drop)
        self._widths, self._path = widths, path
        return widths.of(recipe, report_beside(path, SENSITIVITY))

    def said_in(self, report: Conversion) -> Conversion:
        """Return what convert.json says, with what was chosen."""
        found = None if self._widths is None else self._widths.found
        if found is None:
            return report
        if found.chosen is not None:
            return report.model_copy(update={"chosen_widths": found.chosen})
        return report.model_copy(update={"max_drop": found.max_drop})

    def write(self) -> None:
        """Write what was chosen beside the integer model, where it is new."""
        if self._widths is not None:
            beside = (report_beside(self._path, name) for name in (SENSITIVITY, OVERRIDES))
            self._widths.write(*beside)


def refuse_drop_of_run(source: Path, max_drop: float | None) -> None:
    """Check that widths are searched for a recipe, and that a drop is one.

    Raises:
        InputError: If they are for a run, or the drop is below 0.
    """
    if max_drop is None:
        return
    if source.is_dir():
        raise InputError(
            f"{source}: --max-drop is for a recipe, quantized untrained; the widths "
            "of this run are those that it was trained with"
        )
    if not 0 <= max_drop <= 100:
        raise InputError(f"--max-drop {max_drop:g}: give points of accuracy from 0 to 100, as 0.5")

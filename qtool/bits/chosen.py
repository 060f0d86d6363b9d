"""Widths that are chosen before a training or a conversion, and kept beside what comes of it.

A recipe with a budget becomes one without, whose first overrides say the widths. What chose them is
kept in sensitivity.json, so that whoever goes on there goes on with the same.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qtool.bits.budget import Chooser
from qtool.bits.by_file import Files, choose_widths
from qtool.bits.search import smallest_within
from qtool.bits.subject import built_subject
from qtool.bits.told import told, write_overrides
from qtool.console import say, say_nothing
from qtool.errors import InputError
from qtool.files.scratch import scratch
from qtool.recipe.recipe import Recipe
from qtool.reports.sensitivity import ChosenWidths, MaxDrop, Sensitivity, say_chosen
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.kept.begin import open_run
from qtool.runs.kept.folder import RunFolder
from qtool.world.world import World


@dataclass
class Widths:
    """Chooses the widths of a recipe once, and keeps them.

    Attributes:
        device: to compute on.
        access: what the recipe may reach.
        source: of the recipe, for messages.
        max_drop: points of accuracy that may be lost, in the place of a budget.
        trains: the recipe is to be trained.
        found: what was chosen; None before, and where there is nothing to choose.
    """

    device: torch.device
    access: Access
    source: str
    max_drop: float | None = None
    trains: bool = False
    found: Sensitivity | None = field(default=None, init=False)
    _new: bool = field(default=False, init=False)

    def of(self, recipe: Recipe, kept: Path) -> Recipe:
        """Return the recipe with the widths that a file keeps, or that are chosen now.

        Args:
            recipe: with a budget, or to be searched for; any other is returned as it is.
            kept: sensitivity.json, which need not be there.

        Raises:
            RecipeError: If the budget is out of reach.
            ConversionError: If no widths are as accurate as was asked for.
            InputError: If the file is damaged, or there are a budget and a drop.
        """
        budget = recipe.quantization.budget
        if budget is None and self.max_drop is None:
            return recipe
        if budget is not None and self.max_drop is not None:
            raise InputError(
                f"{self.source}: has a quantization.budget, and --max-drop searches for one; leave "
                "out one of the two"
            )
        there = self._kept(recipe, kept)
        if there is not None:
            say(f"widths are those chosen before, {kept}")
            self.found = there
        else:
            self.found, self._new = self._choose(recipe), True
        return recipe.with_overrides(_choice(self.found).overrides)

    def _kept(self, recipe: Recipe, path: Path) -> Sensitivity | None:
        """Return what a file keeps, where it was asked the same."""
        if not path.is_file():
            return None
        found, budget = Sensitivity.read(path), recipe.quantization.budget
        if budget is not None:
            same = found.chosen is not None and found.chosen.budget == budget.asked
        else:
            same = found.max_drop is not None and found.max_drop.points == self.max_drop
        return found if same else None

    def _choose(self, recipe: Recipe) -> Sensitivity:
        """Measure, and choose."""
        begun = time.monotonic()
        with say_nothing(when=True):  # what is read here is read again, and then told
            data = build.make_data(recipe, self.device, self.access)
            subject = built_subject(recipe, data, self.device)
        chooser = Chooser(subject, self.source, trains=self.trains)
        budget = recipe.quantization.budget
        with scratch() as folder:
            if budget is not None:
                more: dict[str, ChosenWidths | MaxDrop] = {
                    "chosen": choose_widths(chooser, budget, folder)
                }
            else:
                assert self.max_drop is not None
                files, batches = Files(chooser, folder), subject.held_out()
                found = smallest_within(chooser, files, self.max_drop, batches)
                more = {"max_drop": found}
        seconds = time.monotonic() - begun
        made = told(subject, self.source, chooser.measured, seconds=seconds)
        made = made.model_copy(update=more)
        if made.chosen is not None:
            say_chosen(made.chosen)
        return made

    def write(self, sensitivity: Path, overrides: Path) -> None:
        """Write what was chosen, where it is new."""
        if self.found is not None and self._new:
            self.found.write(sensitivity)
            write_overrides(overrides, _choice(self.found))


def _choice(found: Sensitivity) -> ChosenWidths | MaxDrop:
    chosen = found.chosen or found.max_drop
    assert chosen is not None
    return chosen


def widths_for_training(
    recipe: Recipe, folder: RunFolder, widths: Widths, world: World, *, resume: bool
) -> Recipe:
    """Return the recipe of a run, its widths chosen where it has a budget.

    Of several processes the first one chooses.

    Raises:
        InputError: If the folder holds another run.
        RecipeError: If the budget is out of reach.
    """
    if recipe.quantization.budget is None:
        return recipe

    def first() -> Recipe:
        if not folder.sensitivity.is_file():
            open_run(recipe, folder, resume=resume)  # before minutes of measuring
        return widths.of(recipe, folder.sensitivity)

    return world.from_first(first)

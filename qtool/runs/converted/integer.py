"""What exports start from: an integer model from its file, converted first where it must be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from qtool.console import say
from qtool.data.loaders import Loaders
from qtool.export.proof.measure import Evidence
from qtool.files.reading import intact
from qtool.images.usage import Usage
from qtool.integer.file import load_integer, read_about, read_usage
from qtool.models.architecture import Architecture
from qtool.models.vision import rebuild_model
from qtool.recipe.file import recipe_inside
from qtool.recipe.parts import sources
from qtool.recipe.recipe import Recipe
from qtool.runs.access import OF_A_FILE, Access
from qtool.runs.built import build
from qtool.runs.kept.folder import PARTS, RunFolder
from qtool.runs.kept.sound import why_not_fresh
from qtool.settings.user_code import TO_EXPORT, Family

CPU = torch.device("cpu")
EXPORT_IMAGES = 2000  # a share of 2 % is then known to 0.3 %


@dataclass(frozen=True)
class Integer:
    """An integer model from a file, on the CPU, and what it was made of.

    Attributes:
        recipe: as the file holds it.
        access: what it may reach; of a file alone, unless more is known.
        source: of the model, for messages.
    """

    recipe: Recipe
    model: nn.Module
    architecture: Architecture
    said: Usage
    access: Access
    source: str

    @classmethod
    def open(
        cls, path: Path, access: Access = OF_A_FILE, *, runs: Sequence[Family] = TO_EXPORT
    ) -> "Integer":
        """Return what a file holds.

        Args:
            path: of the file.
            access: what its recipe may reach.
            runs: of which families the user's own parts run.

        Raises:
            InputError: If the file is missing, damaged, or not an integer model.
        """
        said, _ = read_about(path)
        with intact(path, "its metadata is damaged"):
            code = access.code_of_file(path, said.get(PARTS)).only(*runs)
            recipe = recipe_inside(path, said["recipe"], code)
            network = rebuild_model(recipe.model.name, said["architecture"])
            model, usage = load_integer(path, network), read_usage(path)
            return cls(recipe, model, said["architecture"], usage, access, str(path))

    @cached_property
    def data(self) -> Loaders:
        """The recipe's batches, on the CPU; of validation, as many as a proof needs."""
        made = build.make_data(
            self.recipe,
            CPU,
            self.access,
            source=self.source,
            validation_samples=EXPORT_IMAGES,
        )
        build.refuse_other_data(made, self.architecture, self.source)
        return made

    @cached_property
    def usage(self) -> Usage:
        """Its classes, and how images are prepared: by the file, or by the data if it is older.

        Raises:
            DataError: If the file does not say it, and the data are not there.
        """
        return self.said if self.said.preprocess is not None else usage_of(self.data)

    def evidence(self) -> Evidence:
        """Return what a file that is made of the model is held against."""
        batches = partial(self.data.validation.batches, 0)
        return Evidence(self.model, batches, self.data.first_images)

    def about(self) -> dict[str, object]:
        """Return what builds the same network again."""
        return about(self.recipe, self.architecture)


def up_to_date_integer(source: Path, convert: Callable[..., object]) -> Path:
    """Return the file of an integer model, or a run's, converted first where it is missing or old.

    Args:
        source: run folder or integer model.
        convert: makes the integer model of a run, or of a recipe at the place `output`.

    Raises:
        InputError: If it is a folder without a run, or its checkpoint is damaged.
    """
    if not source.is_dir():
        return source
    folder = RunFolder(source)
    folder.refuse_unless_run()
    if why := why_not_fresh(folder, folder.integer):
        if not folder.integer.is_file():
            say(f"converting {source} first")
            convert(source)
        else:
            say(f"{folder.integer}: {why}; converting {source} again")
            if folder.checkpoint.is_file():
                convert(source)
            else:  # nothing was trained there
                convert(folder.recipe, output=folder.integer)
    return folder.integer


def integer_of(source: Path, convert: Callable[[Path], object], access: Access) -> Integer:
    """Return an integer model from its file, or from a run, converted first where it must be.

    Args:
        source: run folder or integer model.
        convert: makes the integer model of a run.
        access: what the user says of the source.

    Raises:
        InputError: If there is none, or it is damaged.
    """
    return Integer.open(up_to_date_integer(source, convert), access.to(source))


def usage_of(data: Loaders) -> Usage:
    """Return what a network's classes are called, and how its images are prepared."""
    return Usage(data.class_names, data.preprocess, data.several)


def about(recipe: Recipe, architecture: Architecture) -> dict[str, object]:
    """Return what an integer model's file, and an ONNX file, say of where they come from."""
    said: dict[str, object] = {"recipe": recipe.as_dict(), "architecture": architecture}
    if parts := sources(recipe.as_dict()):
        said[PARTS] = {label: source.digest for label, source in parts.items()}
    return said

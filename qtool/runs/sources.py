"""What conversion and export start from: a run, a recipe, or the file of an integer model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from qtool.console import say
from qtool.conversion.report import conversion_report
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.export.proof.measure import Evidence
from qtool.files.reading import intact
from qtool.images.usage import Usage
from qtool.integer.file import load_integer, read_about, read_usage, save_integer
from qtool.models.architecture import Architecture
from qtool.models.vision import rebuild_model
from qtool.post_training.improve import Improved
from qtool.post_training.methods import DEFAULT, method_of
from qtool.quantizers.plan import plan
from qtool.quantizers.plan_sites import plan_sites
from qtool.recipe.file import recipe_inside
from qtool.recipe.parts import sources
from qtool.recipe.recipe import Recipe
from qtool.reports.results import Conversion
from qtool.reports.tables import show_plan
from qtool.runs import build
from qtool.runs.access import OF_A_FILE, OWN, Access
from qtool.runs.begin import folder_for_untrained, keep_recipe, write_environment
from qtool.runs.equipment import make_loss
from qtool.runs.folder import PARTS, RunFolder
from qtool.runs.given import RUN_OR_RECIPE, refuse_missing, refuse_no_integer_file
from qtool.runs.run import Run
from qtool.runs.sound import why_not_fresh
from qtool.runs.untrained import untrained
from qtool.settings.user_code import TO_EXPORT, TO_JUDGE, Family

CPU = torch.device("cpu")
PROOF_BATCHES = 2  # a proof needs real images, not all of them
EXPORT_IMAGES = 2000  # a share of 2 % is then known to 0.3 %


@dataclass(frozen=True)
class Quantized:
    """A fake-quantized network, trained or calibrated, that is about to be converted.

    Attributes:
        path: where the integer model goes.
        source: SHA-256 of the checkpoint, or of recipe and float network where nothing was trained.
        float_accuracy: of the float network, where nothing was trained and labels are classes.
        folder: that is to keep the recipe, too.
        improved: what was done to it, where nothing was trained.
    """

    recipe: Recipe
    model: nn.Module
    data: Loaders
    architecture: Architecture
    path: Path
    source: str
    float_accuracy: float | None = None
    folder: RunFolder | None = None
    improved: Improved | None = None

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the validation set anew: images [B, C, H, W] and labels [B]."""
        return self.data.validation.batches(0)

    def proof_images(self) -> list[Tensor]:
        """Return the first batches of validation images [B, C, H, W]."""
        return [images for images, _ in islice(self.validation(), PROOF_BATCHES)]

    def report(self, integer: nn.Module, *, avoids_saturation: bool = False) -> Conversion:
        """Judge the integer model beside the one that it was made of."""
        made = conversion_report(
            self.model,
            integer,
            self.validation,
            make_loss(self.recipe),
            path=self.path,
            float_accuracy=self.float_accuracy,
            avoids_saturation=avoids_saturation,
        )
        if self.improved is None:
            return made
        said = {
            "method": self.improved.method,
            "calibration_images": self.improved.images,
            "applied": self.improved.applied,
        }
        return made.model_copy(update=said)

    def keep(self, integer: nn.Module) -> None:
        """Write the integer model and, where there is no run yet, its recipe beside it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.folder is not None:
            keep_recipe(self.recipe, self.folder, "the recipe of this conversion")
            write_environment(self.recipe, self.folder, self.data.first_images.device)
        usage = usage_of(self.data)
        said = about(self.recipe, self.architecture)
        save_integer(integer, self.path, said, usage, source=self.source)


def place_of_integer(source: Path, output: Path | None) -> Path:
    """Return where the integer model of a run, or of a recipe that is not trained, goes."""
    folder = source if source.is_dir() else Path("runs") / source.stem
    return output or RunFolder(folder).integer


def quantized_from(
    source: Path,
    output: Path | None,
    device: torch.device,
    access: Access = OWN,
    *,
    best: bool = False,
    method: str | None = None,
    no_saturation: bool = False,
    images: Path | None = None,
    chooses: Callable[[Recipe, Path, torch.device, Access], Recipe] | None = None,
) -> Quantized:
    """Return what a run has trained, or a recipe's given weights, calibrated and not trained.

    Args:
        source: run folder or recipe.
        output: where the integer model goes; None puts it into the run's folder.
        device: to compute on.
        access: what the user says of the source; no estimator or optimizer of anyone's runs.
        best: of a run, the network that did best on the images held out, into a file of its own.
        method: of a recipe, how its network is improved without training; None: the usual one.
        no_saturation: of a recipe, round channels that could saturate anew before its biases are
            corrected; of a run, conversion does so.
        images: of a recipe, folder of unlabelled images that calibrate.
        chooses: takes a recipe, where its integer model goes, the device and what it may reach;
            returns it with the widths that its budget asks for.

    Raises:
        InputError: If there is no such source, no such method, or nothing can be written there.
    """
    refuse_missing(source, RUN_OR_RECIPE)
    if best and not source.is_dir():
        raise InputError(f"{source}: --best takes a run folder, whose epochs were judged")
    if images is not None and source.is_dir():
        why = "is for a recipe, whose network is quantized untrained"
        raise InputError(
            f"{source}: --calibration-images {why}; training has set this run's ranges"
        )
    if method is not None and source.is_dir():
        why = "is for a recipe, whose network is quantized untrained"
        raise InputError(f"{source}: --method {why}; this run's has learned to live with rounding")
    chosen = DEFAULT if method is None else method
    method_of(chosen)
    if output is not None:
        refuse_no_integer_file(output)
    if source.is_dir():
        run = replace(Run.open(source, device, access), best=best)
        architecture, data = run.checkpoint.architecture, run.data  # in the order of messages
        usual = run.folder.integer_of_best if best else run.folder.integer
        path, made_of = output or usual, run.checkpoint.sha256
        return Quantized(run.recipe, run.model, data, architecture, path, made_of)
    allowed = access.to_recipe(source)
    files = allowed.code_of(source).only(*TO_JUDGE)
    recipe = build.load_checked(source, access=allowed, code=files)
    path = output or RunFolder(Path("runs") / source.stem).integer
    if chooses is not None:
        recipe = chooses(recipe, path, device, allowed.taken(recipe))
    folder = None if output is not None else folder_for_untrained(recipe, source)
    kept = path.with_name(f"{path.stem}.rounding{path.suffix}")
    made = untrained(
        recipe,
        device,
        allowed.taken(recipe),
        method=chosen,
        keep=kept,
        no_saturation=no_saturation,
        images=images,
    )
    show_plan(plan(made.model), plan_sites(made.model))
    return Quantized(
        recipe,
        made.model,
        made.data,
        made.architecture,
        path,
        made.source,
        float_accuracy=made.float_accuracy,
        folder=folder,
        improved=made.improved,
    )


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

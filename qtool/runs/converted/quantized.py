"""What is about to be converted: what a run has trained, or a recipe's network untrained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from qtool.conversion.report import conversion_report
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.files.whole import make_folder
from qtool.integer.file import save_integer
from qtool.models.architecture import Architecture
from qtool.post_training.improve import Improved
from qtool.post_training.methods import DEFAULT, method_of
from qtool.quantizers.plan import plan
from qtool.quantizers.plan_sites import plan_sites
from qtool.recipe.recipe import Recipe
from qtool.reports.results import Conversion
from qtool.reports.tables import show_plan
from qtool.runs.access import OWN, Access
from qtool.runs.built import build
from qtool.runs.built.equipment import make_loss
from qtool.runs.converted.integer import about, usage_of
from qtool.runs.converted.untrained import untrained
from qtool.runs.given import refuse_no_integer_file, refuse_no_source_of_conversion
from qtool.runs.kept.begin import folder_for_untrained, keep_recipe, write_environment
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.settings.user_code import TO_JUDGE

PROOF_BATCHES = 2  # a proof needs real images, not all of them


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
        make_folder(self.path.parent)
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
    refuse_no_source_of_conversion(source)
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

"""The teacher that a recipe asks for: built, checked against the student, known by its digest."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.console import note
from qtool.data.loaders import Loaders
from qtool.errors import DataError, InputError, RecipeError
from qtool.files.json_data import read_json
from qtool.graph.exact import sha256_of_state
from qtool.models.architecture import Architecture
from qtool.models.user_models import refuse_unfit
from qtool.models.vision import (
    RGB,
    build_model,
    input_channels,
    rebuild_model,
    says_channels,
)
from qtool.recipe.model import Model
from qtool.recipe.recipe import Recipe
from qtool.recipe.teacher import Teacher
from qtool.runs.kept.folder import RunFolder
from qtool.training.distillation import TEMPERATURE, Distillation
from qtool.training.features import Outputs, block_names

KEY = "teacher"  # in environment.json: the SHA-256 of its weights
FEW = 3  # blocks that a message names
_OF_MODEL = re.compile(r"(?<![/\w])model\.(?=weights|channels|num_classes|classes)")


def distillation_of(
    recipe: Recipe, loaders: Loaders, architecture: Architecture, device: torch.device
) -> Distillation | None:
    """Return what a recipe's teacher adds to the loss, None where there is none.

    Random numbers that are drawn later do not depend on it.

    Args:
        recipe: of the run.
        loaders: its data.
        architecture: of its network.
        device: that it is trained on.

    Raises:
        RecipeError: If the teacher does not take the student's images, tells other classes apart,
            or has no block like the student's.
        DataError: If its weights cannot be had, or are of other classes.
    """
    asked = recipe.training.distillation
    if asked is None:
        return None
    with torch.random.fork_rng(devices=[]):
        teacher = _build(recipe, loaders)
        blocks: Sequence[str] = ()
        if asked.loss == "features":
            student = rebuild_model(recipe.model.name, architecture)
            blocks = _common_blocks(student.eval(), teacher.eval(), loaders)
    digest = sha256_of_state(teacher.state_dict())
    teacher = teacher.to(device)
    if recipe.training.channels_last:
        # torch documents this keyword, but its overloads leave it out
        teacher = teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    temperature = None if blocks else asked.temperature or TEMPERATURE
    return Distillation(
        teacher, share=asked.share, temperature=temperature, blocks=blocks, digest=digest
    )


def _build(recipe: Recipe, loaders: Loaders) -> nn.Module:
    """Return the teacher on the CPU, with its weights."""
    said = recipe.training.teacher
    chosen: Teacher | Model = recipe.model if said is None else said
    with _said_of_teacher(own=said is None):
        name, channels = chosen.name, loaders.channels
        wanted = chosen.channels or RGB if says_channels(name) else input_channels(name)
        if wanted not in (None, channels):
            raise RecipeError(
                f"{name} takes images of {wanted} channels, and the student's have {channels}; "
                "choose a network that takes the same images"
            )
        built = build_model(
            name,
            loaders.classes,
            channels,
            loaders.image_size,
            weights=chosen.weights,
            **chosen.params,
        )
        if built.fresh_head:
            raise DataError(
                f"{chosen.weights}: its head is for other classes than the {loaders.classes} of "
                "the data, of which it can teach nothing; give weights that were trained on these"
            )
        sizes = {"channels": channels, "image_size": loaders.image_size}
        refuse_unfit(built.model, name, classes=loaders.classes, **sizes)
    if recipe.training.distillation is not None and recipe.training.distillation.loss == "kl":
        _refuse_one_output(loaders)
    if built.note and said is not None:
        note(built.note)
    return built.model


def _refuse_one_output(loaders: Loaders) -> None:
    if loaders.classes < 2:
        why = "softened outputs need two classes at least, and the data have numbers to be met"
        raise RecipeError(f"training.distillation.loss: kl: {why}; choose features")


@contextmanager
def _said_of_teacher(*, own: bool) -> Generator[None]:
    """Let errors inside say that they are of the teacher, and which of a recipe's keys is meant."""
    place = "training.distillation, whose teacher is the network of model.weights" if own else ""
    try:
        yield
    except (DataError, RecipeError) as error:
        why = str(error)
        if not own:  # what builds networks knows of one section only
            why = _OF_MODEL.sub("training.teacher.", why)
        raise type(error)(f"{place or 'training.teacher'}: {why}") from error


def _common_blocks(student: nn.Module, teacher: nn.Module, loaders: Loaders) -> list[str]:
    """Return the blocks that both have by name and that run, in the student's order.

    Raises:
        RecipeError: If there are none, or what they return has other shapes.
    """
    theirs = dict(teacher.named_modules())
    own = block_names(student)
    shared = [name for name in own if name in theirs]
    size = loaders.image_size
    image = torch.zeros(1, loaders.channels, size, size)
    outputs = [_outputs(network, shared, image) for network in (student, teacher)]
    ran = [name for name in shared if all(name in seen for seen in outputs)]
    if not ran:
        named = ", ".join(own[:FEW]) + (", ..." if len(own) > FEW else "")
        raise RecipeError(
            f"training.distillation.loss: features: the teacher has no block by the name of one of "
            f"the network's ({named or 'which has none'}); choose kl, or a teacher of its kind"
        )
    for name in ran:
        shapes = [list(seen[name].shape[1:]) for seen in outputs]
        if shapes[0] != shapes[1]:
            raise RecipeError(
                f"training.distillation.loss: features: {name} returns {shapes[0]} for an image, "
                f"and the teacher's {shapes[1]}; their channels and sizes must agree: choose kl, "
                "or a teacher as wide as the network"
            )
    return ran


@torch.no_grad()
def _outputs(network: nn.Module, names: Sequence[str], image: Tensor) -> dict[str, Tensor]:
    """Return what modules of a network in evaluation mode return for an image."""
    outputs = Outputs(names)
    with outputs.watching(network):
        network(image)
    return outputs.seen


def digests_of(distillation: Distillation | None) -> dict[str, str]:
    """Return what environment.json says of a teacher, nothing where there is none."""
    return {} if distillation is None else {KEY: distillation.digest}


def refuse_other_teacher(folder: RunFolder, distillation: Distillation | None) -> None:
    """Check that the teacher, if there is one, is the one that a run began with.

    Raises:
        InputError: If its weights are others.
    """
    if distillation is None or not folder.environment.is_file():
        return
    kept = read_json(folder.environment).get(KEY)
    if kept is not None and kept != distillation.digest:
        raise InputError(
            f"{folder}: holds a run with another teacher (the SHA-256 of its weights is another); "
            f"put back the file that it began with, or choose another {folder.option}"
        )

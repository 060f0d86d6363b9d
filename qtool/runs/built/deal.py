"""How the rows of a batch are dealt out to processes, and what several of them cannot do."""

from dataclasses import dataclass

import torch

from qtool.data.batches import Batches
from qtool.data.loaders import Loaders
from qtool.errors import InputError, RecipeError
from qtool.recipe.recipe import Recipe
from qtool.world.world import World


def refuse_indivisible(recipe: Recipe, world: World, source: str) -> None:
    """Check that each process, and each pass, gets as many rows of a batch as the others.

    Raises:
        RecipeError: If not.
    """
    size, needed = recipe.data.batch_size, world.size * recipe.training.gradient_accumulation
    if size % needed:
        parts = f"{world.size} processes"
        if (shares := recipe.training.gradient_accumulation) > 1:
            parts += f" times training.gradient_accumulation: {shares}"
        raise RecipeError(
            f"{source}: data.batch_size: {size}, of all processes together, is not divisible by "
            f"{parts}; choose a multiple of {needed}"
        )


def refuse_differing(recipe: Recipe, world: World) -> None:
    """Check that all processes have read the same recipe.

    Raises:
        InputError: If not.
    """
    told = world.told(repr(recipe.identity()))
    different = [rank for rank, word in enumerate(told) if word != told[0]]
    if different:
        which = ", ".join(map(str, different))
        raise world.alike(
            InputError(f"process {which} has another recipe than process 0; give all the same file")
        )


@dataclass(frozen=True)
class Dealt:
    """What a process trains on and judges by.

    Attributes:
        train, validation: its rows of each batch.
        rows: that a training batch has in all of several processes together; 0 in one.
        holdout: its rows of each batch of images held out; None where there are none.
    """

    train: Batches
    validation: Batches
    rows: int
    holdout: Batches | None = None


def deal(recipe: Recipe, loaders: Loaders, device: torch.device, world: World) -> Dealt:
    """Return the rows of this process: those of rank r are r, r + size, ... of each batch.

    Raises:
        InputError: If there are too few for all, or several processes cannot train as the recipe
            says.
    """
    needed = world.size * recipe.training.gradient_accumulation
    if needed == 1:
        return Dealt(loaders.train, loaders.validation, 0, loaders.holdout)
    rows = min(recipe.data.batch_size, loaders.train.samples)
    if rows < needed:
        raise InputError(
            f"{rows} training images are too few for {needed} shares of a batch, of "
            f"{world.size} processes and training.gradient_accumulation"
        )
    if world.size == 1:
        return Dealt(loaders.train, loaders.validation, 0, loaders.holdout)
    if recipe.training.cuda_graph and device.type == "cuda":
        raise InputError(
            "training.cuda_graph: captures the steps of one process alone; leave it out under "
            "torchrun"
        )
    part = (world.rank, world.size)
    held = None if loaders.holdout is None else loaders.holdout.part(*part)
    return Dealt(loaders.train.part(*part), loaders.validation.part(*part), rows, held)

"""How long a training takes, by a few of its steps; what they change is not kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch
from torch import Tensor, nn

from qtool.console import say_nothing
from qtool.data.loaders import Loaders
from qtool.models.architecture import Architecture
from qtool.recipe.recipe import Recipe
from qtool.runs.built.equipment import make_trainer, step_of
from qtool.runs.built.teacher import distillation_of
from qtool.training.watcher import Batches

TIMED = 3  # steps
AT_LEAST, ENOUGH = 2, 10.0  # steps; seconds after which no more are timed


@dataclass(frozen=True)
class Timing:
    """How long parts of a training take, reading and preparing images included.

    Attributes:
        step: seconds of a training step.
        epoch: seconds of an epoch, with its validation.
        total: seconds of all epochs, and of starting what reads images.
    """

    step: float
    epoch: float
    total: float


def time_steps(
    model: nn.Module,
    recipe: Recipe,
    data: Loaders,
    device: torch.device,
    *,
    architecture: Architecture,
    steps: int = TIMED,
) -> Timing:
    """Return how long training takes, by a few steps of a prepared, calibrated model and a batch.

    Args:
        model: whose weights the steps change.
        recipe: of the run.
        data: its batches.
        device: that they are on.
        architecture: of the network.
        steps: how many are timed after the first, which starts what reads images.
    """
    with say_nothing(when=True):
        trainer = make_trainer(recipe, model.train(), data, device)
        trainer.distillation = distillation_of(recipe, data, architecture, device)
    first, step = _times(trainer.train, step_of(trainer, recipe), steps)
    model.eval()
    with torch.no_grad():
        begun, judged = _times(data.validation, lambda images, _: model(images), 2)
    epoch = step * len(data.train) + judged * len(data.validation)
    return Timing(step, epoch, first + begun + epoch * recipe.training.epochs)


def _times(
    batches: Batches, work: Callable[[Tensor, Tensor], object], most: int
) -> tuple[float, float]:
    """Return how long it takes to have a first batch, and to have another and work on it; seconds.

    The very first work takes longer than all that follows, and counts only where there is no other.
    The median leaves out what else the machine did meanwhile.
    """
    taken: list[float] = []
    start = time.perf_counter()
    begun, began = 0.0, start
    for images, labels in islice(batches.batches(0), 1 + most):
        if not taken:
            began = time.perf_counter()
            begun = began - start
        work(images, labels)
        _ = float(images.sum())  # waits for a device
        now = time.perf_counter()
        taken.append(now - began)
        began = now
        if len(taken) > AT_LEAST and now - start > ENOUGH:
            break
    return begun, median(taken[1:] or taken)

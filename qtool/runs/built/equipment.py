"""What trains a recipe's network: loss, optimizer, the step that it takes, and who looks on."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from qtool.console import say
from qtool.data.loaders import Loaders
from qtool.errors import DataError
from qtool.numerics.schedules import SCHEDULES
from qtool.quantizers.control import compile_kernels
from qtool.recipe.recipe import Recipe
from qtool.runs.built.deal import deal
from qtool.runs.built.stepping import fast_step, population_of
from qtool.settings.choices import SAMPLED, rate_schedule
from qtool.training.average import Average
from qtool.training.class_weights import class_weights
from qtool.training.frozen import freeze, still_norms
from qtool.training.grid_pull import GridPull
from qtool.training.loop import Trainer
from qtool.training.losses import Loss
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from qtool.training.patience import Patience
from qtool.training.profile import StepProfile
from qtool.training.random_numbers import OwnRandomNumbers
from qtool.training.sharpness import Sharpness
from qtool.training.step import TrainingStep
from qtool.training.synced_norms import sync_norms
from qtool.training.transition_rate import TransitionRate
from qtool.training.user_training import build_loss
from qtool.world.world import ALONE, World

TOP = 5
SHARE_OF_START = 0.01  # in an average, from which on it is said


def make_loss(recipe: Recipe) -> Loss:
    """Return the recipe's loss."""
    return build_loss(recipe.training.loss.name, recipe.training.loss.params)


def _weighed(loss: Loss, recipe: Recipe, loaders: Loaders, device: torch.device) -> Loss:
    """Return a loss with the weights of classes that a recipe asks for."""
    given = recipe.training.class_weights
    if given is None:
        return loss
    weights = class_weights(given, _labels(loaders), loaders.classes).to(device)

    def weighed(logits: Tensor, labels: Tensor) -> Tensor:
        return cast(Callable[..., Tensor], loss)(logits, labels, weights)

    return weighed


def _labels(loaders: Loaders) -> Tensor:
    """Return the labels of the images that are trained on; numbers where they are not known."""
    split = loaders.train_split
    return torch.as_tensor([0.0] if split is None else split.labels)


def make_trainer(
    recipe: Recipe,
    model: nn.Module,
    loaders: Loaders,
    device: torch.device,
    world: World = ALONE,
) -> Trainer:
    """Return what trains the model, at its very beginning; `equip` gives it its step.

    Raises:
        InputError: If several processes cannot train it as the recipe says.
        DataError: If the data do not give what the recipe wants to be told of them.
    """
    training = recipe.training
    on_cuda = device.type == "cuda"
    dealt = deal(recipe, loaders, device, world)
    if training.sync_batch_norm and world.size > 1:
        sync_norms(model)
    freeze(model, training.freeze)
    compile_kernels(model, wanted=training.compile and not on_cuda)
    if training.cuda_graph and not on_cuda:
        say("note: going on without training.cuda_graph, which is for CUDA devices")
    loss = make_loss(recipe)
    rate, stop = rate_schedule(training.learning_rate), training.early_stopping
    if training.validation_top5 and loaders.classes <= TOP:
        raise DataError(
            f"training.validation_top5: the data have {loaders.classes} classes, and {TOP} of them "
            f"are always among the {TOP} largest logits; leave it out"
        )
    optimizer = OPTIMIZERS.build(training.optimizer.name, **training.optimizer.params)
    return Trainer(
        model=model,
        train=dealt.train,
        validation=dealt.validation,
        holdout=dealt.holdout,
        loss=_weighed(loss, recipe, loaders, device),
        judged_by=loss,
        optimizer=optimizer(
            parameter_groups(model, latent_apart=training.transition_rate is not None), rate(0.0)
        ),
        learning_rate=rate,
        device=device,
        precision=getattr(torch, training.precision),
        epochs=training.epochs,
        history=[],
        world=world,
        batch=dealt.rows,
        shares=training.gradient_accumulation,
        clip=training.clip_gradient,
        average=None if training.ema is None else Average(model, training.ema),
        still=still_norms(model, training.freeze),
        patience=stop and Patience(stop.patience, stop.min_delta),
        top5=training.validation_top5,
        several=_labels(loaders).ndim > 1,
    )


def note_on_average(recipe: Recipe, steps: int) -> str:
    """Say how much of the first weights their average still holds at the end, "" where little.

    Args:
        recipe: of the run.
        steps: of an epoch.
    """
    training = recipe.training
    left = 0.0 if training.ema is None else training.ema ** (steps * training.epochs)
    if left < SHARE_OF_START:
        return ""
    return (
        f"note: training.ema: at the end {left:.0%} of the average is still what training began "
        f"with, after {steps * training.epochs} steps; a smaller number forgets it"
    )


def equip(
    trainer: Trainer, recipe: Recipe, loaders: Loaders, profile: StepProfile | None = None
) -> None:
    """Give a trainer, once its state is there, the step that the recipe asks for, and who looks on.

    A step that is measured is neither compiled nor captured.
    """
    if trainer.distillation is not None:
        trainer.join(trainer.distillation)
    step = trainer.step = step_of(trainer, recipe)
    if profile is not None:
        step.mark = profile.mark
        trainer.join(profile)
    elif trainer.device.type == "cuda":
        trainer.step = fast_step(step, recipe, trainer.device)
    if trainer.world.size > 1:
        trainer.join(OwnRandomNumbers(recipe.seed, trainer.world.rank))
    population = population_of(recipe, trainer.model, loaders)
    if population is not None:
        trainer.step = population.around(trainer.step, trainer.optimizer)
        trainer.join(population)


def step_of(trainer: Trainer, recipe: Recipe) -> TrainingStep:
    """Return a trainer's step, in which takes part what the recipe asks for beside the optimizer.

    Whatever looks on for it joins the trainer.
    """
    step = trainer.plain_step()
    training, model, optimizer = recipe.training, trainer.model, trainer.optimizer
    if (wanted := training.transition_rate) is not None:
        start = wanted.start or max(trainer.learning_rate(p) for p in SAMPLED)
        target = SCHEDULES.build(wanted.target.name, **wanted.target.params)
        made = TransitionRate(
            model,
            optimizer,
            target,
            momentum=wanted.momentum,
            start=start,
            gain=wanted.gain or start,
        )
        step.aids.append(made)
        trainer.join(made)
    if training.cage is not None:
        strength = SCHEDULES.build(training.cage.name, **training.cage.params)
        step.aids.append(GridPull(model, optimizer, strength))
    if training.sharpness_aware is not None:
        step.sharpness = Sharpness(model, training.sharpness_aware, trainer.world)
    return step

"""The epochs of a run: from where it stands to its end, each of them written down."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from qtool.console import say
from qtool.conversion.biases import round_biases
from qtool.models.architecture import Architecture
from qtool.reports.results import EpochLine
from qtool.runs.built import build, equipment
from qtool.runs.built.teacher import distillation_of
from qtool.runs.kept import checkpoint
from qtool.runs.kept.begin import summarize
from qtool.runs.kept.best import keep_if_best
from qtool.runs.kept.checkpoint import Checkpoint
from qtool.runs.run import Run
from qtool.stopping import Stopped, held_back
from qtool.training.loop import Trainer
from qtool.training.position import Position, position_of
from qtool.training.profile import StepProfile
from qtool.training.progress import say_epoch


def start_or_resume(run: Run, profile: StepProfile | None = None) -> tuple[Trainer, Architecture]:
    """Return the trainer, at the beginning or at the checkpoint, and the network's architecture."""
    if run.takes_up_checkpoint():
        architecture = run.checkpoint.architecture
        trainer = run.trainer()
        run.restore(trainer)
        run.let_go()
        steps = trainer.tally.steps
        say(f"going on after epoch {len(trainer.history)}" + (f", step {steps}" if steps else ""))
    else:
        built = build.make_network(run.recipe, run.data)
        architecture = built.architecture
        model = build.prepare_network(run.recipe, built.model, run.data.first_images).train()
        build.calibrate_on(model, run.recipe, run.data)
        run.world.same_everywhere(model)
        trainer = equipment.make_trainer(run.recipe, model, run.data, run.device, run.world)
    trainer.distillation = distillation_of(run.recipe, run.data, architecture, run.device)
    equipment.equip(trainer, run.recipe, run.data, profile)
    return trainer, architecture


def fit(
    run: Run,
    trainer: Trainer,
    architecture: Architecture,
    tell: Sequence[Callable[[EpochLine], None]],
) -> None:
    """Train to the end, and leave metrics, checkpoint and summary after each epoch.

    A signal that asks to stop leaves a checkpoint where it came, between two steps.

    Args:
        run: which.
        trainer: that stands where it goes on.
        architecture: of its network.
        tell: who takes each epoch's line, in the first process.
    """
    recipe, folder, world = run.recipe, run.folder, run.world

    def state(inside: Position | None = None) -> Checkpoint:
        return checkpoint.take(
            trainer.model,
            trainer.optimizer,
            trainer.history,
            architecture,
            inside,
            average=trainer.average,
        )

    def write(line: EpochLine) -> None:
        folder.write_metrics(trainer.history)
        keep_if_best(state(), folder)
        if line.epoch % recipe.training.checkpoint_every == 0 or trainer.ended:
            checkpoint.save(state(), folder.checkpoint)
        summarize(folder, "running", trainer.model, trainer.history)
        for each in tell:
            each(line)

    def save_inside() -> None:
        checkpoint.save(state(position_of(trainer)), folder.checkpoint)

    def after_epoch(line: EpochLine) -> None:
        if trainer.ended:
            trainer.refuse_constant()
        world.from_first(partial(write, line))
        say_epoch(line, trainer.epochs)

    def finish(model: nn.Module) -> None:
        build.reestimate_batch_norm_on(model, recipe, run.data)
        with held_back():  # to estimate them again, with biases rounded, would give others
            round_biases(model)
            world.same_everywhere(model)
            trainer.keep_finished()

    try:
        trainer.fit(after_epoch, finish)
    except Stopped:
        if not trainer.ended:
            world.from_first(save_inside)
        raise

"""A run, trained: from its start or from its last checkpoint, every epoch written down."""

from torch import nn

from qtool.console import say
from qtool.conversion.biases import round_biases
from qtool.errors import QtoolError
from qtool.models.architecture import Architecture
from qtool.quantizers.health import health
from qtool.quantizers.plan import plan
from qtool.quantizers.plan_sites import plan_sites
from qtool.reports.results import EpochLine, Summary
from qtool.reports.tables import show_plan
from qtool.runs import build, checkpoint
from qtool.runs.begin import keep_recipe, open_run, summarize, write_environment
from qtool.runs.changes import ChangeRecorder
from qtool.runs.machine import device_name
from qtool.runs.run import Run
from qtool.runs.sound import checkpoint_to_go_on_from
from qtool.training.freed_memory import keep_freed_memory
from qtool.training.loop import Trainer
from qtool.training.profile import StepProfile
from qtool.training.progress import say_epoch


def train_run(
    run: Run,
    *,
    resume: bool,
    with_plan: bool = True,
    profile: bool = False,
    records: bool = False,
) -> Summary:
    """Train a checked recipe in a run folder, from the start or from its last checkpoint.

    Args:
        run: folder, recipe and device.
        resume: a run that the folder holds already goes on.
        with_plan: show what happens to each layer.
        profile: measure where the time of a step goes.
        records: keep every flip of a weight's code in the folder too.

    Raises:
        InputError: If the folder holds anything else.
        TrainingError: If training cannot go on; the summary says why, too, whatever went wrong.
    """
    recipe, folder, device = run.recipe, run.folder, run.device
    open_run(recipe, folder, resume=resume)
    finished = folder.finished_summary()
    if finished is not None and not checkpoint_to_go_on_from(folder)[1]:
        say(f"{folder} is finished already" + (", so nothing is measured" if profile else ""))
        return finished
    say(f"training {folder} on {device} ({device_name(device)})")
    for note in recipe.quantization.notes():
        say(f"note: {note}")
    if device.type == "cpu":
        keep_freed_memory()
    measured = StepProfile(device) if profile else None
    trainer, architecture = start_or_resume(run, measured)
    if with_plan:
        show_plan(plan(trainer.model), plan_sites(trainer.model))
    keep_recipe(recipe, folder, "the resolved recipe of this run")
    write_environment(recipe, folder, device)
    summarize(folder, "running", trainer.model, trainer.history)
    if records:
        trainer.watchers.append(ChangeRecorder(trainer.model, folder, len(trainer.history)))
    if trainer.history and folder.integer.is_file():
        say("note: what was converted and exported of this run before is of an earlier epoch")
    _fit(run, trainer, architecture)
    images, _ = next(iter(trainer.validation.batches(0)))
    findings = health(trainer.model, images)
    more = {} if measured is None else {"profile": measured.report()}
    return summarize(folder, "finished", trainer.model, trainer.history, health=findings, **more)


def start_or_resume(run: Run, profile: StepProfile | None = None) -> tuple[Trainer, Architecture]:
    """Return the trainer, at the beginning or at the checkpoint, and the network's architecture."""
    if run.takes_up_checkpoint():
        architecture = run.checkpoint.architecture
        trainer = run.trainer()
        run.restore(trainer)
        run.let_go()
        say(f"going on after epoch {len(trainer.history)}")
    else:
        built = build.make_network(run.recipe, run.data)
        architecture = built.architecture
        model = build.prepare_network(run.recipe, built.model, run.data.first_images).train()
        build.calibrate_on(model, run.recipe, run.data)
        trainer = build.make_trainer(run.recipe, model, run.data, run.device)
    build.equip(trainer, run.recipe, run.data, profile)
    return trainer, architecture


def _fit(run: Run, trainer: Trainer, architecture: Architecture) -> None:
    """Train to the end, and leave metrics, checkpoint and summary after each epoch."""
    recipe, folder = run.recipe, run.folder

    def after_epoch(line: EpochLine) -> None:
        if line.epoch == trainer.epochs:
            trainer.refuse_constant()
        folder.write_metrics(trainer.history)
        if line.epoch % recipe.training.checkpoint_every == 0 or line.epoch == trainer.epochs:
            state = checkpoint.take(trainer.model, trainer.optimizer, trainer.history, architecture)
            checkpoint.save(state, folder.checkpoint)
        summarize(folder, "running", trainer.model, trainer.history)
        say_epoch(line, trainer.epochs)

    def finish(model: nn.Module) -> None:
        build.reestimate_batch_norm_on(model, recipe, run.data)
        round_biases(model)

    try:
        trainer.fit(after_epoch, finish)
    except Exception as error:
        why = str(error) if isinstance(error, QtoolError) else f"{type(error).__name__}: {error}"
        summarize(folder, "failed", trainer.model, trainer.history, error=why)
        raise
    except KeyboardInterrupt:
        say(f"stopped; go on with: {folder.resume_command}")
        raise

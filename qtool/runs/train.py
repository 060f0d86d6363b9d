"""A run, trained: from its start or from its last checkpoint, every epoch written down."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from qtool.console import say
from qtool.errors import QtoolError
from qtool.files.lock import only_writer
from qtool.models.architecture import Architecture
from qtool.quantizers.health import health
from qtool.quantizers.plan import plan
from qtool.quantizers.plan_sites import plan_sites
from qtool.reports.results import EpochLine, Profile, Summary
from qtool.reports.tables import show_plan
from qtool.runs.built import equipment
from qtool.runs.built.teacher import digests_of, refuse_other_teacher
from qtool.runs.epochs import fit, start_or_resume
from qtool.runs.kept.answers import AnswerRecorder, keep_answers
from qtool.runs.kept.begin import (
    as_begun,
    keep_recipe,
    open_run,
    say_changed_data,
    summarize,
    write_environment,
)
from qtool.runs.kept.changes import ChangeRecorder
from qtool.runs.kept.scalars import refuse_missing_trackers, trackers
from qtool.runs.kept.sound import checkpoint_sha256, checkpoint_to_go_on_from
from qtool.runs.kept.weights import write_weights
from qtool.runs.machine import device_name
from qtool.runs.run import Run
from qtool.training.explanation import Explanation
from qtool.training.freed_memory import keep_freed_memory
from qtool.training.loop import Trainer
from qtool.training.profile import StepProfile
from qtool.training.synced_norms import plain_norms


@dataclass(frozen=True)
class Looks:
    """Who looks on.

    Attributes:
        profile: where the time of a step goes is measured.
        records: every flip of a weight's code is kept.
        explains: the coarse gradient and activations are looked at after each epoch.
        at_end: is shown the network once it is trained.
        begins: is called once the folder has its recipe.
    """

    profile: bool
    records: bool
    explains: bool
    at_end: Callable[[nn.Module], None] | None
    begins: Callable[[], None] | None


def train_run(
    run: Run,
    *,
    resume: bool,
    with_plan: bool = True,
    profile: bool = False,
    records: bool = False,
    explains: bool = False,
    longer: bool = False,
    at_end: Callable[[nn.Module], None] | None = None,
    begins: Callable[[], None] | None = None,
) -> Summary:
    """Train a checked recipe in a run folder, from the start or from its last checkpoint.

    Args:
        run: folder, recipe and device.
        resume: a run that the folder holds already goes on.
        with_plan: show what happens to each layer.
        profile: measure where the time of a step goes.
        records: keep every flip of a weight's code in the folder too.
        explains: look at the coarse gradient and at activations after each epoch.
        longer: a finished run goes on where the recipe has more epochs, as another run from there.
        at_end: is shown the network once it is trained, in the first process.
        begins: is called there once the folder has its recipe.

    Raises:
        InputError: If the folder holds anything else.
        RecipeError: If a package for its scalars is not installed.
        TrainingError: If training cannot go on; the summary says why, too, whatever went wrong.
    """
    world = run.world
    refuse_missing_trackers(run.recipe)
    begun = partial(finished_before, run, resume=resume, longer=longer, profile=profile)
    finished = world.from_first(begun)
    if finished is not None:  # and so nothing is written, where that may not even be possible
        return finished
    with ExitStack() as held:

        def lock() -> None:
            held.enter_context(only_writer(run.folder.path))

        world.from_first(lock)
        finished = world.from_first(begun)  # by another process meanwhile
        if finished is not None:
            return finished
        run = replace(run, recipe=world.from_first(partial(as_begun, run.recipe, run.folder)))
        try:
            looks = Looks(profile, records, explains, at_end, begins)
            return _train(run, looks, with_plan=with_plan)
        except KeyboardInterrupt:
            if run.folder.holds_run():
                say(f"stopped; go on with: {run.folder.command_to_go_on(run.story)}")
            raise


def finished_before(
    run: Run, *, resume: bool, longer: bool = False, profile: bool = False
) -> Summary | None:
    """Return the summary of a run that has nothing left to train; None of any other.

    Raises:
        InputError: If the folder holds anything else than this run.
    """
    folder = run.folder
    open_run(run.recipe, folder, resume=resume, longer=longer)
    finished = folder.finished_summary()
    if finished is None or checkpoint_to_go_on_from(folder)[1]:
        return None
    if finished.epochs < run.recipe.training.epochs and not finished.stopped_early:
        return None  # it is to go on
    early = f", it stopped early after epoch {finished.epochs}" if finished.stopped_early else ""
    say(f"{folder} is finished already{early}" + (", so nothing is measured" if profile else ""))
    return finished


def _train(run: Run, looks: Looks, *, with_plan: bool) -> Summary:
    """Train what is left; the summary says how that ended."""
    recipe, folder, device, world = run.recipe, run.folder, run.device, run.world
    before, epochs = folder.finished_summary(), recipe.training.epochs
    among = f", {world.size} processes" if world.size > 1 else ""
    say(f"training {folder} on {device} ({device_name(device)}{among})")
    if before is not None and before.epochs < epochs and not before.stopped_early:
        say(
            f"note: {folder} was finished after {before.epochs} epochs; it goes on to {epochs} "
            f"with the schedules of {epochs}, and from there on is another run than one of {epochs}"
        )
    for said in recipe.quantization.notes():
        say(f"note: {said}")
    if device.type == "cpu":
        keep_freed_memory()
    measured = StepProfile(device) if looks.profile else None
    trainer, architecture = start_or_resume(run, measured)
    if note := equipment.note_on_average(recipe, len(trainer.train)):
        say(note)
    if with_plan:
        show_plan(plan(trainer.model), plan_sites(trainer.model))
    if trainer.history or trainer.tally.steps:
        world.from_first(partial(say_changed_data, folder, run.data))
        world.from_first(partial(refuse_other_teacher, folder, trainer.distillation))
    with _failure_said(run, trainer):
        world.from_first(partial(_write_beginning, run, trainer, looks))
        if looks.records:
            begun, done = trainer.tally.steps > 0, len(trainer.history)
            trainer.join(ChangeRecorder(trainer.model, folder, done, begun=begun))
        if looks.explains:
            batch = next(iter(run.data.train.batches(0)))
            trainer.join(Explanation(trainer.model, batch, trainer.loss, recipe.seed))
        if trainer.history and folder.integer.is_file():
            say("note: what was converted and exported of this run before is of an earlier epoch")
        trainer.join(answers := AnswerRecorder())
        tell: list[Callable[[EpochLine], None]] = []
        with ExitStack() as held:

            def begin_to_tell() -> None:
                tell.append(held.enter_context(trackers(recipe, folder, trainer.history)))

            world.from_first(begin_to_tell)
            fit(run, trainer, architecture, tell)
        if trainer.average is not None:
            trainer.average.put()
        plain_norms(trainer.model)
        found = answers.found(world)
        summary = world.from_first(partial(_end, run, trainer, architecture, measured, found))
        if looks.at_end is not None and world.first:
            looks.at_end(trainer.model)
        return summary


def _write_beginning(run: Run, trainer: Trainer, looks: Looks) -> None:
    """Write down what is known before the first step."""
    keep_recipe(run.recipe, run.folder, "the resolved recipe of this run")
    if looks.begins is not None:
        looks.begins()
    taught = digests_of(trainer.distillation)
    write_environment(run.recipe, run.folder, run.device, run.data, **taught)
    old = [run.folder.weights, run.folder.answers]  # those of an earlier epoch
    for path in old if trainer.history else [*old, run.folder.best]:
        path.unlink(missing_ok=True)
    summarize(run.folder, "running", trainer.model, trainer.history)


def _end(
    run: Run,
    trainer: Trainer,
    architecture: Architecture,
    measured: StepProfile | None,
    found: tuple[Tensor, Tensor] | None,
) -> Summary:
    """Write and return what there is to say of a run that is finished.

    Args:
        run: which.
        trainer: that has trained it.
        architecture: of its network.
        measured: where the time went, where that was asked for.
        found: classes and labels of the validation images, where they are known.
    """
    folder, model, history = run.folder, trainer.model, trainer.history
    findings = health(model, next(iter(run.data.validation.batches(0)))[0])
    made_of = checkpoint_sha256(folder) or ""
    write_weights(model, run.recipe, architecture, folder, made_of)
    keep_answers(model, run.data, folder, found)
    more: dict[str, Profile | bool | None] = {}
    if measured is not None:
        more["profile"] = measured.report()
    if len(history) < trainer.epochs:
        more["stopped_early"] = True
    return summarize(folder, "finished", model, history, health=findings, **more)


@contextmanager
def _failure_said(run: Run, trainer: Trainer) -> Generator[None]:
    """Let the summary say why training failed, where that can still be written."""
    try:
        yield
    except Exception as error:
        failure = run.world.meant_by(error)
        known = isinstance(failure, QtoolError)
        why = str(failure) if known else f"{type(failure).__name__}: {failure}"
        if run.world.first and run.folder.holds_run():  # else it holds nothing, and stays free
            with suppress(QtoolError):  # the first error is the one to hear of
                summarize(run.folder, "failed", trainer.model, trainer.history, error=why)
        if failure is not error:
            raise failure from error
        raise

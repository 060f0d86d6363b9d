"""One run of training, epoch by epoch: forward, backward, step, schedules."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from qtool.errors import TrainingError
from qtool.evaluation import count_hits
from qtool.numerics.schedules import Schedule
from qtool.quantizers.control import blend_alphas, set_progress
from qtool.quantizers.layers import take_oscillations
from qtool.quantizers.measures import code_measures
from qtool.reports.results import EpochLine
from qtool.stopping import held_back
from qtool.training.average import Average
from qtool.training.distillation import Distillation
from qtool.training.failures import failed_step
from qtool.training.judging import Judge
from qtool.training.losses import Loss
from qtool.training.lost import Lost
from qtool.training.optimizers import set_rate
from qtool.training.patience import Patience, merit, merits
from qtool.training.progress import EpochBar, progress_bar
from qtool.training.replicas import Replicas
from qtool.training.step import TakeStep, TrainingStep
from qtool.training.step_watch import LossError, StepError, StepWatch, loss_problem
from qtool.training.tally import Measures, Tally
from qtool.training.watcher import Batch, Batches, Watcher, WatcherState
from qtool.world.group import Group
from qtool.world.world import ALONE, World


@dataclass
class Trainer:
    """Everything one run of training moves.

    Attributes:
        model: fake-quantized or float, on `device`.
        optimizer: over the groups of `parameter_groups`.
        learning_rate: schedule on progress 0..1.
        precision: torch.float32, or torch.bfloat16 for autocast.
        epochs: of the whole run, also when it goes on from a checkpoint.
        history: one line of metrics for each epoch that is done.
        step: takes a training step; None takes the plain one.
        watchers: look on.
        watch: sees loss and gradients of each step.
        lost: sees numbers and quantizers after each epoch.
        tally: of the epoch in progress; one with steps in it is gone on with.
        kept: what watchers that are to join had seen of that epoch, by their class.
        world: processes that train together; each has some rows of each batch.
        batch: rows that a training batch has in all of them; 0 for as many as are given.
        shares: passes whose gradients are added up for a step.
        holdout: training images that are held out: they judge each epoch in place of `validation`,
            which judges the last one only.
        clip: the most that the norm of all gradients together may be; None for no limit.
        average: of the weights, which is judged and finished in their place.
        still: batch norms that keep their statistics.
        patience: ends training early, by the images held out; None trains for all epochs.
        judged_by: loss whose mean is told of images that judge; None takes that of training.
        top5: tell the share of validation images whose class is among the five largest logits, too.
        several: float labels [B, classes] are several classes of an image, and no shares of them.
        distillation: what a teacher adds to the loss of training; None without one.
    """

    model: nn.Module
    train: Batches
    validation: Batches
    loss: Loss
    optimizer: torch.optim.Optimizer
    learning_rate: Schedule
    device: torch.device
    precision: torch.dtype
    epochs: int
    history: list[EpochLine]
    step: TakeStep | None = None
    watchers: list[Watcher] = field(default_factory=list)
    watch: StepWatch = field(default_factory=StepWatch)
    lost: Lost = field(default_factory=Lost)
    tally: Tally = field(init=False)
    kept: dict[str, WatcherState] = field(default_factory=dict)
    world: World = ALONE
    batch: int = 0
    shares: int = 1
    holdout: Batches | None = None
    clip: float | None = None
    average: Average | None = None
    still: Sequence[nn.Module] = ()
    patience: Patience | None = None
    judged_by: Loss | None = None
    top5: bool = False
    several: bool = False
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        """Begin with an epoch of which nothing is done."""
        self.tally = Tally(self.device)
        by = self.validation, self.holdout, self.judged_by or self.loss
        seen_by = self.watchers, self.watch, self.lost
        self.judge = Judge(self.model, *by, *seen_by, self.world, len(self.train), self.top5)

    @property
    def ended(self) -> bool:
        """Tell whether no epoch is left to train."""
        early = self.patience is not None and self.patience.is_over(merits(self.history))
        return early or len(self.history) >= self.epochs

    def join(self, watcher: Watcher) -> None:
        """Let somebody look on from now on, who may have done so before in the epoch."""
        self.watchers.append(watcher)
        if (state := self.kept.pop(type(watcher).__name__, None)) is not None:
            watcher.restore(state)

    def fit(
        self,
        after_epoch: Callable[[EpochLine], None],
        finish: Callable[[nn.Module], None] = lambda model: None,
    ) -> None:
        """Train from where `history` and `tally` stand to the end.

        A signal that asks to stop comes between two steps, or while the model is judged; then
        model, optimizer, `history` and `tally` are what a checkpoint needs.

        Args:
            after_epoch: called with each epoch's line of metrics, once it is in `history`.
            finish: what is left to do to the model after the last step, before it is judged; not
                called where the tally says that it is done.

        Raises:
            TrainingError: If a loss, a gradient or what a step leaves is no longer finite, the loss
                far beyond its start, or the network lost; names layer, epoch and step.
            ValueError: If there is no batch to train on.
            Stopped: If a signal asks to stop.
        """
        steps = len(self.train)
        if not steps:
            raise ValueError("the training set gives no batch; it needs one at least")
        done = len(self.history)
        if self.history and self.watch.start is None:
            self.watch.start_from(getattr(self.history[0], "train_loss", None))
        take = self.step or self.plain_step()
        with progress_bar(steps, self.epochs, steps * done + self.tally.steps) as bar:
            for epoch in range(done, self.epochs):
                if self.ended:
                    break
                self.tally.resume()
                trained = self.tally.line or self._train_epoch(epoch, bar, take)
                last = self._ends(epoch, trained)
                if last and not self.tally.finished:
                    with self.as_judged():
                        finish(self.model)
                when = f"after epoch {epoch + 1}, step {(epoch + 1) * steps}"
                with self.world.together():
                    self.lost.refuse(self.model, self.optimizer, when, last=last)
                with self.as_judged():
                    judged = self.judge.after(epoch, trained, last=last)
                with held_back():
                    line = EpochLine(**trained, **judged, seconds=round(self.tally.seconds, 3))
                    self.history.append(line)
                    self.tally = Tally(self.device)
                    for watcher in self.watchers:
                        watcher.end_epoch(line.epoch, line.step)
                    after_epoch(line)

    def as_judged(self) -> AbstractContextManager[None]:
        """Let the model be what is judged while inside: the average, if there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def keep_finished(self) -> None:
        """Note, inside `as_judged`, that what is left to do after the last step is done."""
        if self.average is not None:
            self.average.take()
        self.tally.finished = True

    def plain_step(self) -> TrainingStep:
        """Return what takes a step as it is, neither compiled nor captured."""
        made = TrainingStep(self.model, self.loss, self.optimizer, self.precision)
        made.watch, made.shares, made.batch = self.watch, self.shares, self.batch
        made.clip, made.distillation = self.clip, self.distillation
        if isinstance(self.world, Group):
            made.world = self.world
            made.replicas = Replicas(self.model, self.world)
        return made

    def refuse_constant(self) -> None:
        """Check, after an epoch, that the network tells images of the validation set apart.

        Raises:
            TrainingError: If all logits are the same; names the first layer behind which they are.
        """
        epoch = len(self.history)
        images = next(iter(self.validation.batches(epoch - 1)))[0]
        when = f"after epoch {epoch}, step {epoch * len(self.train)}"
        self.lost.share(self.world)
        with self.as_judged(), self.world.together():
            self.lost.refuse_constant(self.model, images, when)

    def _train_epoch(self, epoch: int, bar: EpochBar, take: TakeStep) -> Measures:
        """Take the steps of an epoch that are left; return what all of them came to."""
        self.model.train()
        for norm in self.still:
            norm.eval()
        if not self.tally.steps:
            self.watch.begin_epoch()
        with ExitStack() as around:
            for watcher in self.watchers:
                around.enter_context(watcher.epoch(self.model))
            batch = self._take_steps(epoch, bar, take)
        with held_back():  # what is read here of the model is counted anew from here on
            self.tally.line = self._line_of_training(epoch, batch)
        return self.tally.line

    def _take_steps(self, epoch: int, bar: EpochBar, take: TakeStep) -> Batch:
        """Take the steps that are left, each to its end; return the last batch."""
        steps, tally = len(self.train), self.tally
        batches = self.train.batches(epoch, tally.steps)
        for watcher in self.watchers:
            batches = watcher.batches(batches)
        batch: Batch | None = None
        for batch in self.world.in_step(batches):
            with held_back():
                self._take_step(epoch, batch, take)
            if self.device.type == "cpu" or tally.steps % 20 == 0:
                loss, share = tally.mean_loss, tally.accuracy(batch[1])
                bar.step(epoch * steps + tally.steps, loss, share, tally.images_per_second)
        if not tally.images:
            raise TrainingError(f"the training set gave no batch in epoch {epoch + 1}")
        return batch or next(iter(self.train.batches(epoch, steps - 1)))

    def _take_step(self, epoch: int, batch: Batch, take: TakeStep) -> None:
        """Take one step on images [B, C, H, W] and labels [B], and count it."""
        steps, index = len(self.train), self.tally.steps
        progress = (epoch * steps + index) / (steps * self.epochs)
        rate = self.learning_rate(progress)
        set_rate(self.optimizer, rate)
        set_progress(self.model, progress)
        for watcher in self.watchers:
            watcher.before_step(epoch * steps + index)
        try:
            loss, logits = take(*batch)
        except StepError as error:
            raise self._failed(error, batch, epoch, index) from None
        if self.average is not None:
            self.average.update()
        labels = batch[1]
        if labels.ndim > 1 and not self.several:  # of an image that is mixed, its largest share
            labels = labels.argmax(1)
        hits = self.world.add_up(count_hits(logits, labels))
        self.tally.add(loss, hits, self.batch or len(labels), rate)

    def _line_of_training(self, epoch: int, batch: Batch) -> Measures:
        """Return what the epoch's line says of its training; `batch` is any of it.

        Raises:
            TrainingError: If a loss or a gradient could not be right.
        """
        tally, steps = self.tally, len(self.train)
        if failure := self.watch.end_epoch():
            step, error = failure
            if isinstance(error, LossError):
                error = loss_problem(float(tally.loss_sum), None) or error
            raise self._failed(error, batch, epoch, step)
        mean = tally.mean_loss
        if error := loss_problem(mean, self.watch.start):
            raise self._failed(error, batch, epoch, steps - 1)
        if self.watch.start is None:  # where a device kept it
            self.watch.start_from(mean)
        set_progress(self.model, (epoch + 1) / self.epochs)
        line: Measures = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * steps,
            "train_loss": mean,
            "train_accuracy": tally.accuracy(batch[1]),
            "learning_rate": tally.rate,
        }
        if alphas := blend_alphas(self.model):
            line["alpha"] = min(alphas.values())
        for watcher in self.watchers:
            line |= watcher.measures()
        return line | take_oscillations(self.model) | code_measures(self.model)

    def _ends(self, epoch: int, trained: Measures) -> bool:
        """Tell whether an epoch, whose steps are taken, is the last one.

        Where that depends on the images held out, what they say goes to the epoch's line.
        """
        if self.patience is None or epoch == self.epochs - 1:
            return epoch == self.epochs - 1
        if "holdout_loss" not in trained:
            self.model.eval()
            with self.as_judged():
                found = self.judge.hold_out(epoch, watched=False)
            with held_back():
                trained |= found
        held = (trained.get(f"holdout_{figure}") for figure in ("accuracy", "loss", "f1"))
        now = merit(*held)
        return self.patience.is_over([*merits(self.history), now])

    def _failed(self, error: StepError, batch: Batch, epoch: int, step: int) -> TrainingError:
        when = f"in epoch {epoch + 1}, step {step + 1}"
        return self.world.alike(failed_step(self.model, batch, error, when, self.world))

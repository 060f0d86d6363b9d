"""One run of training, epoch by epoch: forward, backward, step, schedules."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qtool.errors import TrainingError
from qtool.evaluation import Score, count_hits, evaluate, share_of_hits
from qtool.numerics.schedules import Schedule
from qtool.quantizers.control import blend_alphas, set_progress, without_blends
from qtool.quantizers.layers import take_oscillations
from qtool.reports.results import EpochLine
from qtool.training.failures import failed_step, loss_of
from qtool.training.losses import Loss
from qtool.training.lost import Lost
from qtool.training.optimizers import set_rate
from qtool.training.progress import EpochBar, progress_bar
from qtool.training.step import TakeStep, TrainingStep
from qtool.training.step_watch import LossError, StepError, StepWatch, loss_problem
from qtool.training.watcher import Watcher

Measures = dict[str, Any]  # keys of an EpochLine


class Batches(Protocol):
    """Images and labels whose order is a function of the epoch."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B, C, H, W] and labels [B] of one epoch."""
        ...


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

    def fit(
        self,
        after_epoch: Callable[[EpochLine], None],
        finish: Callable[[nn.Module], None] = lambda model: None,
    ) -> None:
        """Train from the epoch after the last one of `history` to the end.

        Args:
            after_epoch: called with each epoch's line of metrics, once it is in `history`.
            finish: what is left to do to the model after the last step, before it is judged.

        Raises:
            TrainingError: If a loss, a gradient or what a step leaves is no longer finite, the loss
                far beyond its start, or the network lost; names layer, epoch and step.
            ValueError: If there is no batch to train on.
        """
        steps = len(self.train)
        if not steps:
            raise ValueError("the training set gives no batch; it needs one at least")
        done = len(self.history)
        if self.history:
            self.watch.start_from(getattr(self.history[0], "train_loss", None))
        take = self.step or self.plain_step()
        with progress_bar(steps * self.epochs, steps * done) as bar:
            for epoch in range(done, self.epochs):
                started = time.perf_counter()
                with ExitStack() as around:
                    for watcher in self.watchers:
                        around.enter_context(watcher.epoch(self.model))
                    trained = self._train_epoch(epoch, bar, take)
                last = epoch == self.epochs - 1
                if last:
                    finish(self.model)
                when = f"after epoch {epoch + 1}, step {(epoch + 1) * steps}"
                self.lost.refuse(self.model, self.optimizer, when, last=last)
                judged = self._validate(epoch)
                seconds = round(time.perf_counter() - started, 3)
                line = EpochLine(**trained, **judged, seconds=seconds)
                self.history.append(line)
                for watcher in self.watchers:
                    watcher.end_epoch(line.epoch, line.step)
                after_epoch(line)

    def plain_step(self) -> TrainingStep:
        """Return what takes a step as it is, neither compiled nor captured."""
        made = TrainingStep(self.model, self.loss, self.optimizer, self.precision)
        made.watch = self.watch
        return made

    def refuse_constant(self) -> None:
        """Check, after an epoch, that the network tells images of the validation set apart.

        Raises:
            TrainingError: If all logits are the same; names the first layer behind which they are.
        """
        epoch = len(self.history)
        images = next(iter(self.validation.batches(epoch - 1)))[0]
        when = f"after epoch {epoch}, step {epoch * len(self.train)}"
        self.lost.refuse_constant(self.model, images, when)

    def _train_epoch(self, epoch: int, bar: EpochBar, take: TakeStep) -> Measures:
        self.model.train()
        steps = len(self.train)
        total = steps * self.epochs
        # sums stay on the device: reading one waits for everything queued there
        loss_sum = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device, dtype=torch.int64)
        images, rate, started = 0, 0.0, time.perf_counter()
        inputs = labels = torch.empty(0)
        self.watch.begin_epoch()
        batches = self.train.batches(epoch)
        for watcher in self.watchers:
            batches = watcher.batches(batches)
        for index, (inputs, labels) in enumerate(batches):
            progress = (epoch * steps + index) / total
            rate = self.learning_rate(progress)
            set_rate(self.optimizer, rate)
            set_progress(self.model, progress)
            for watcher in self.watchers:
                watcher.before_step(epoch * steps + index)
            try:
                loss, logits = take(inputs, labels)
            except StepError as error:
                raise self._failed(error, (inputs, labels), epoch, index) from None
            loss_sum += loss * len(labels)
            hits += count_hits(logits, labels)
            images += len(labels)
            if self.device.type == "cpu" or index % 20 == 19:
                seconds = time.perf_counter() - started
                share = share_of_hits(hits, images, labels)
                bar.step(epoch + 1, float(loss_sum) / images, share, images / seconds)
        if failure := self.watch.end_epoch():
            step, error = failure
            if isinstance(error, LossError):
                error = loss_problem(float(loss_sum), None) or error
            raise self._failed(error, (inputs, labels), epoch, step)
        if not images:
            raise TrainingError(f"the training set gave no batch in epoch {epoch + 1}")
        mean = float(loss_sum) / images
        if error := loss_problem(mean, self.watch.start):
            raise self._failed(error, (inputs, labels), epoch, steps - 1)
        if self.watch.start is None:  # where a device kept it
            self.watch.start_from(mean)
        set_progress(self.model, (epoch + 1) / self.epochs)
        line: Measures = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * steps,
            "train_loss": mean,
            "train_accuracy": share_of_hits(hits, images, labels),
            "learning_rate": rate,
        }
        if alphas := blend_alphas(self.model):
            line["alpha"] = min(alphas.values())
        for watcher in self.watchers:
            line |= watcher.measures()
        return line | take_oscillations(self.model)

    def _validate(self, epoch: int) -> Measures:
        """Judge the quantized network and, where there are blends, the blended one beside it."""
        self.model.eval()
        alphas = blend_alphas(self.model).values()
        with without_blends(self.model):
            self.lost.begin_validation()
            score = self._score(epoch, self._watched_loss)
        line: Measures = {"validation_loss": score.loss, "validation_accuracy": score.accuracy}
        if alphas:
            # once every alpha is 1 the two are the same network
            blended = self._score(epoch, self.loss) if min(alphas) < 1 else score
            line["blended_validation_loss"] = blended.loss
            line["blended_validation_accuracy"] = blended.accuracy
        return line

    def _score(self, epoch: int, loss: Loss) -> Score:
        score = evaluate(self.model, self.validation.batches(epoch), loss)
        if error := loss_problem(score.loss, self.watch.start):
            batch = next(iter(self.validation.batches(epoch)))
            error = LossError(f"in validation {error.what}", error.beside)
            raise self._failed(error, batch, epoch, len(self.train) - 1)
        return score

    def _watched_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        for watcher in self.watchers:
            watcher.validated(logits, labels)
        self.lost.see_logits(logits, labels)
        return loss_of(self.loss, logits, labels)

    def _failed(
        self, error: StepError, batch: tuple[Tensor, Tensor], epoch: int, step: int
    ) -> TrainingError:
        return failed_step(self.model, batch, error, f"in epoch {epoch + 1}, step {step + 1}")

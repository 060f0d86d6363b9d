"""One training step: forward, backward, the optimizer's step; as it is, compiled, or captured."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtool.quantizers.control import begin_step, dampening_penalty
from qtool.training.distillation import Distillation
from qtool.training.failures import loss_of
from qtool.training.losses import Loss
from qtool.training.replicas import Replicas
from qtool.training.sharpness import Sharpness
from qtool.training.step_aid import StepAid
from qtool.training.step_watch import StepWatch
from qtool.world.passes import WHOLE, Pass, Share, joined
from qtool.world.world import ALONE, World

TakeStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # images, labels -> loss, logits


def measure_nothing(phase: str) -> None:
    """Stand in for the marks of a profile."""


@dataclass
class TrainingStep:
    """A step on one batch, without the schedules, which are to be set before.

    Attributes:
        model: fake-quantized or float.
        precision: torch.float32, or torch.bfloat16 for autocast.
        mark: told which phase of the step begins.
        forward: a compiled form of the model's forward pass; None takes the model.
        watch: what sees loss and gradients before the weights move.
        shares: into how many passes the rows are divided whose gradients are added up.
        world: processes that take the step together.
        replicas: runs the model where there are several of them.
        batch: rows that all of them have together; 0 where all have as many.
        clip: the most that the norm of all gradients together may be; None for no limit.
        aids: take part beside the optimizer.
        sharpness: lets a second pass give the gradients; None takes those of the first.
        distillation: what a teacher adds to the loss; None without one.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    precision: torch.dtype = torch.float32
    mark: Callable[[str], None] = measure_nothing
    forward: Callable[[Tensor], Tensor] | None = None
    watch: StepWatch = field(default_factory=StepWatch)
    shares: int = 1
    world: World = ALONE
    replicas: Replicas | None = None
    batch: int = 0
    clip: float | None = None
    aids: list[StepAid] = field(default_factory=list)
    sharpness: Sharpness | None = None
    _again: bool = field(default=False, init=False, repr=False)
    distillation: Distillation | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step on images [B, C, H, W]; return loss [] and logits [B, classes], detached.

        The loss is that of all rows of all processes, the logits are of the images given.

        Raises:
            FloatingPointError: Says what is wrong with the loss or the gradients, before the
                weights move; on a CPU only, as elsewhere looking would wait for the device.
            TrainingError: If a label is none of the classes.
        """
        self.mark("forward")
        self.begin(len(images))
        return self.run(images, labels)

    def begin(self, rows: int) -> None:
        """Do what is due once per step, before any of its passes."""
        for aid in self.aids:
            aid.look()
        with joined(self._pass_of(-(-rows // self.shares))):
            begin_step(self.model)
        for aid in self.aids:
            aid.begin()

    def run(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `__call__` does, after what is due once per step: tensor arithmetic alone."""
        if self.sharpness is None:
            loss, logits = self._passes(images, labels)
        else:
            with self.sharpness.first():
                loss, logits = self._passes(images, labels)
            with self.sharpness.second():
                self._again = True
                self._passes(images, labels)
                self._again = False
        if self.distillation is not None:
            self.distillation.end_step(self.world, self.batch or self.world.size * len(labels))
        self.mark("optimizer")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.watch.see_gradients([p.grad for p in parameters if p.grad is not None], loss)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        for aid in self.aids:
            aid.before()
        self.optimizer.step()
        for aid in self.aids:
            aid.after()
        self.mark("rest")
        if self.replicas is not None:
            self.replicas.agree_on_buffers()
        return loss.detach(), logits.detach()

    def _passes(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Let the parameters have their gradients; return the loss [] and the logits."""
        if self.shares > 1 or self.replicas is not None:
            return self._in_parts(images, labels)
        loss, logits, total = self._forward(images, labels)
        self.mark("optimizer")
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(total)
        return loss, logits

    def _see_loss(self, loss: Tensor, penalty: Tensor | None) -> None:
        """Let the loss be watched, once a step."""
        if not self._again:
            self.watch.see_loss(loss, penalty)

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss [], the logits, and the loss with what is added to it []."""
        with self._around(images.device):
            logits = (self.forward or self.model)(images)
        loss = self._loss_of(logits, images, labels)
        penalty = dampening_penalty(self.model)
        self._see_loss(loss, penalty)
        return loss, logits, loss if penalty is None else loss + penalty

    def _backward(self, total: Tensor) -> None:
        self.mark("backward")
        if total.requires_grad:  # not where all weights were blended, and their blend is done
            total.backward()

    def _in_parts(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the gradients of all rows, this process's in several passes.

        Returns:
            The loss [] of all rows, and the logits of these images.
        """
        self.optimizer.zero_grad(set_to_none=True)
        whole = self.batch or self.world.size * len(labels)
        parts = list(
            zip(images.tensor_split(self.shares), labels.tensor_split(self.shares), strict=True)
        )
        found: list[Tensor] = []
        seen = torch.zeros((), device=images.device)
        for index, (some, their) in enumerate(parts):
            last = index == len(parts) - 1
            keeps = nullcontext()
            if self.replicas is not None:
                keeps = self.replicas.kept_back(wanted=not last)
            with joined(self._pass_of(len(some))), keeps:
                self.mark("forward")
                with self._around(images.device):
                    logits = (self.replicas or self.forward or self.model)(some)
                loss = self._loss_of(logits, some, their)
                seen += loss.detach() * len(their)
                found.append(logits.detach())
                penalty = dampening_penalty(self.model) if last else None
                if last:
                    seen = self.world.add_up(seen) / whole
                    self._see_loss(seen, penalty)
                # the mean of processes' gradients is that of the mean loss of all rows
                share = len(their) * self.world.size / whole
                total = loss if share == 1 else loss * share
                self._backward(total if penalty is None else total + penalty)
        return seen, torch.cat(found)

    def _loss_of(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a pass, [], with the teacher's share where there is one."""
        logits = logits.float()
        loss = loss_of(self.loss, logits, labels)
        if self.distillation is None:
            return loss
        counts = not self._again
        return self.distillation.mixed(loss, logits, images, self._autocast, counts=counts)

    def _pass_of(self, rows: int) -> Pass:
        """Return which part of the batch a pass on so many rows is."""
        if self.shares == 1 and self.world.size == 1:
            return WHOLE
        whole = self.batch or self.world.size * self.shares * rows
        return Pass(self.world, Share(whole, rows, self.shares, self.world.size))

    @contextmanager
    def _around(self, device: torch.device) -> Generator[None]:
        """Run a pass of the network in its arithmetic, seen by who compares its blocks."""
        watched = nullcontext()
        if self.distillation is not None:
            watched = self.distillation.watching(self.model)
        with self._autocast(device), watched:
            yield

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.precision)

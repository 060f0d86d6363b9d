"""One training step: forward, backward, the optimizer's step; as it is, compiled, or captured."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtool.quantizers.control import begin_step, dampening_penalty
from qtool.training.failures import loss_of
from qtool.training.losses import Loss
from qtool.training.step_watch import StepWatch

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
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    precision: torch.dtype = torch.float32
    mark: Callable[[str], None] = measure_nothing
    forward: Callable[[Tensor], Tensor] | None = None
    watch: StepWatch = field(default_factory=StepWatch)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step on images [B, C, H, W]; return loss [] and logits [B, classes], detached.

        Raises:
            FloatingPointError: Says what is wrong with the loss or the gradients, before the
                weights move; on a CPU only, as elsewhere looking would wait for the device.
            TrainingError: If a label is none of the classes.
        """
        self.mark("forward")
        begin_step(self.model)
        return self.run(images, labels)

    def run(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `__call__` does, after what is due once per step: tensor arithmetic alone."""
        with self._autocast(images.device):
            logits = (self.forward or self.model)(images)
        loss = loss_of(self.loss, logits.float(), labels)
        penalty = dampening_penalty(self.model)
        self.watch.see_loss(loss, penalty)
        self.mark("optimizer")
        self.optimizer.zero_grad(set_to_none=True)
        self.mark("backward")
        total = loss if penalty is None else loss + penalty
        if total.requires_grad:  # not where all weights were blended, and their blend is done
            total.backward()
        self.mark("optimizer")
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        self.watch.see_gradients(gradients, loss)
        self.optimizer.step()
        self.mark("rest")
        return loss.detach(), logits.detach()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.precision)

"""What must hold of the loss and of the gradients at each training step.

On a CPU a number costs nothing to read, so a step whose loss or gradients are not finite is stopped
before its weights move. Elsewhere reading one would wait for the device: the number of the first
step that failed is kept there, and is read once the epoch is over. So is, anywhere, a loss that is
finite but far beyond its start, unless it stays there.
"""

import math
from typing import TypedDict

import torch
from torch import Tensor

LARGEST_RISE = 1e6  # of the loss, against its start
LEAST_START = 0.01  # a loss that starts at nearly 0 may rise to what any network has
PATIENCE = 10  # steps in a row whose loss is far beyond its start, after which nothing is awaited
NEVER = 2**62  # the number of a step that no epoch reaches


class StepError(FloatingPointError):
    """Something of a training step cannot be right.

    Attributes:
        what: went wrong, in words that go on with when it did.
        beside: what that is held against, which comes after when, or "".
    """

    def __init__(self, what: str, beside: str = "") -> None:
        super().__init__(what + beside)
        self.what, self.beside = what, beside


class LossError(StepError):
    """The loss is not finite, or far beyond its start."""


class GradientError(StepError):
    """A gradient is not finite although the loss is, or its square overflows."""


class Seen(TypedDict):
    """What a checkpoint inside an epoch holds of its steps.

    Attributes:
        start: the loss that others are held against, None before the first step.
        steps: of the epoch so far.
        in_a_row: the last so many had a loss far beyond its start.
        beyond: the first such step, None where there was none.
        what, beside: of its error; "" where there was none.
        kept: what a device counted, int64 [3]; None on a CPU, or before the first step.
    """

    start: float | None
    steps: int
    in_a_row: int
    beyond: int | None
    what: str
    beside: str
    kept: Tensor | None


class StepWatch:
    """Watches loss and gradients from step to step.

    Attributes:
        start: the loss of the first step that was seen, or what `start_from` was told; None before.
    """

    def __init__(self) -> None:
        self.start: float | None = None
        self._kept: _Kept | None = None
        self._step = self._in_a_row = 0
        self._beyond: tuple[int, StepError] | None = None
        self._counted: Tensor | None = None  # what a device had counted before the first step here

    def start_from(self, loss: float | None) -> None:
        """Hold losses against one that is known, such as that of a run's first epoch."""
        self.start = loss

    def see_loss(self, loss: Tensor, penalty: Tensor | None = None) -> None:
        """See the loss [], and what is added to it [], before they have a gradient.

        Raises:
            LossError: If one of them cannot be right; on a CPU only.
        """
        if loss.device.type != "cpu":
            return
        value = float(loss.detach())
        if self.start is None and math.isfinite(value):
            self.start = value
        error = loss_problem(value, self.start)
        if error is None:
            self._in_a_row = 0
        elif not math.isfinite(value):
            raise error
        else:
            self._beyond = self._beyond or (self._step, error)
            self._in_a_row += 1
            if self._in_a_row == PATIENCE:
                raise error
        self._step += 1
        if penalty is not None and not math.isfinite(added := float(penalty.detach())):
            raise LossError(f"what dampening adds to the loss became {added}")

    def see_gradients(self, gradients: list[Tensor], loss: Tensor) -> None:
        """See all gradients before the optimizer's step, and once more the loss [].

        Their norm is not finite where one of them is not, or where its square overflows float32,
        which a second moment would not survive either.

        Raises:
            GradientError: If they cannot be right; on a CPU only.
        """
        norms = torch.ops.aten._foreach_norm.Scalar(gradients, 2) if gradients else []
        norm = torch.stack(norms).sum() if norms else torch.zeros((), device=loss.device)
        if loss.device.type == "cpu":
            # where the loss is far beyond its start already, that is what there is to say
            if not math.isfinite(float(norm)) and not self._in_a_row:
                raise GradientError("the gradients are no longer finite")
            return
        if self._kept is None:
            self._kept = _Kept(loss, self.start)
            if self._counted is not None:
                self._kept.count_from(self._counted)
                self._counted = None
        self._kept.take(loss.detach(), norm)

    def begin_epoch(self) -> None:
        """Count steps from 0."""
        self._step = self._in_a_row = 0
        self._beyond = None
        if self._kept is not None:
            self._kept.restart()

    def state(self) -> Seen:
        """Return what was seen of the epoch so far."""
        step, error = self._beyond or (None, None)
        return {
            "start": self.start,
            "steps": self._step,
            "in_a_row": self._in_a_row,
            "beyond": step,
            "what": error.what if error else "",
            "beside": error.beside if error else "",
            "kept": self._counted if self._kept is None else self._kept.counted(),
        }

    def restore(self, state: Seen) -> None:
        """Take back what `state` returned."""
        start, step, counted = state["start"], state["beyond"], state["kept"]
        self.start = None if start is None else float(start)
        self._step, self._in_a_row = int(state["steps"]), int(state["in_a_row"])
        error = LossError(str(state["what"]), str(state["beside"]))
        self._beyond = None if step is None else (int(step), error)
        self._counted = None if counted is None else counted.clone()

    def end_epoch(self) -> tuple[int, StepError] | None:
        """Return the first step of the epoch that failed and how, or None; waits for the device."""
        return self._beyond if self._kept is None else self._kept.first_failure()


def loss_problem(loss: float, start: float | None) -> LossError | None:
    """Return what is wrong with a loss beside that of the start, None where nothing is."""
    if not math.isfinite(loss):
        return LossError(f"the loss became {loss}")
    if start is not None and loss > LARGEST_RISE * max(start, LEAST_START):
        beside = f", more than a million times the {start:.3g} that it began with"
        return LossError(f"the loss became {loss:.3g}", beside)
    return None


class _Kept:
    """What a device keeps of an epoch: tensors that stay where they are, as a CUDA graph needs.

    Attributes:
        steps: int64 [], steps of the epoch so far.
        first: int64 [2], the first of them whose loss, and whose gradients, failed, else NEVER.
        limits: float32 [2], the most that the loss, and the norm of the gradients, may be.
    """

    def __init__(self, loss: Tensor, start: float | None) -> None:
        device = loss.device
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.first = torch.full((2,), NEVER, dtype=torch.int64, device=device)
        self.never = self.first.clone()
        limit = loss.detach() if start is None else torch.full_like(loss.detach(), start)
        limit = LARGEST_RISE * limit.float().clamp_min(LEAST_START)
        largest = torch.finfo(torch.float32).max
        self.limits = torch.stack([limit.clamp_max(largest), torch.full_like(limit, largest)])

    def take(self, loss: Tensor, norm: Tensor) -> None:
        """Take the numbers of a step."""
        sound = torch.stack([loss.float(), norm]) <= self.limits  # False for a NaN
        self.first.copy_(torch.minimum(self.first, torch.where(sound, self.never, self.steps)))
        self.steps.add_(1)

    def counted(self) -> Tensor:
        """Return steps and both first failures, int64 [3], on the CPU."""
        return torch.cat([self.steps.reshape(1), self.first]).cpu()

    def count_from(self, counted: Tensor) -> None:
        """Go on from what `counted` returned."""
        self.steps.copy_(counted[0])
        self.first.copy_(counted[1:])

    def restart(self) -> None:
        """Begin an epoch."""
        self.steps.zero_()
        self.first.fill_(NEVER)

    def first_failure(self) -> tuple[int, StepError] | None:
        """Return the first step that failed, and how."""
        loss, gradients = self.first.tolist()
        if min(loss, gradients) == NEVER:
            return None
        if loss <= gradients:
            return loss, LossError(
                "the loss became not finite, or more than a million times its start,"
            )
        return gradients, GradientError("the gradients are no longer finite")

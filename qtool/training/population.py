"""A student of two linear layers beside its teacher: closed forms of what samples only estimate.

The network has one weight vector w, shared by the m rows of its input, and a trained second layer
v; its activation is 1 for x > 0, else 0. For inputs of independent N(0, 1) the loss and the coarse
gradient have closed forms, which stand in `qtool.numerics.coarse_gradient`.

Reference: Yin et al., 2019, arXiv:1903.05662.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.errors import TrainingError
from qtool.numerics.coarse_gradient import (
    expected_coarse_gradient,
    population_gradients,
    population_loss,
)
from qtool.training.step import TakeStep
from qtool.training.step_watch import LossError
from qtool.training.watcher import Watcher, WatcherState


class Population(Watcher):
    """Looks at the population loss from step to step, and takes the steps where that is asked for.

    Attributes:
        estimator: takes expected gradients of this estimator in place of backward passes, exactly
            as algorithm 1 of the paper; None leaves the steps as they are.
    """

    def __init__(
        self,
        v: nn.Parameter,
        w: nn.Parameter,
        v_star: Tensor,
        w_star: Tensor,
        estimator: str | None,
    ) -> None:
        """Take the student's parameters, [1, m] and [1, n], and the teacher's, float64 [m], [n]."""
        self._v, self._w, self._teacher = v, w, (v_star.cpu(), w_star.cpu())
        self.estimator = estimator
        self._before: tuple[Tensor, Tensor] | None = None
        self._coarse: Tensor | None = None
        self._loss, self._rise = self._loss_now(), 0.0

    def around(self, take: TakeStep, optimizer: torch.optim.Optimizer) -> TakeStep:
        """Return the step that is to be taken, with a look at the population loss after it."""

        def watched(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            self._before = self._student()
            if self.estimator is None:
                found = take(inputs, labels)
            else:
                found = self._descend(optimizer, self.estimator), torch.empty(0)
            self._coarse = None if self._w.grad is None else _vector(self._w.grad)
            after = self._loss_now()
            self._rise = max(self._rise, after - self._loss)
            self._loss = after
            return found

        self._loss = self._loss_now()
        return watched

    def measures(self) -> dict[str, float | None]:
        """Return what was seen since the last call.

        population_loss: after the last step; gradient_cosine: between the last step's gradient of w
        and the population loss's own, None where one of them is zero; largest_rise: of the
        population loss in one step, 0 where it only fell.
        """
        rise, self._rise = self._rise, 0.0
        return {
            "population_loss": self._loss,
            "gradient_cosine": self._cosine(),
            "largest_rise": rise,
        }

    def state(self) -> WatcherState:
        """Return the largest rise of the epoch so far."""
        return {"rise": torch.tensor(self._rise, dtype=torch.float64)}

    def restore(self, state: WatcherState) -> None:
        """Take it back."""
        self._rise = float(state["rise"])

    def _descend(self, optimizer: torch.optim.Optimizer, estimator: str) -> Tensor:
        """Step along E dl/dv and E g_w, both at once; return the population loss before it.

        Raises:
            LossError: Says the loss where it is not finite.
            TrainingError: If w is exactly 0.
        """
        if not math.isfinite(self._loss):
            raise LossError(f"the loss became {self._loss}")
        v, w = self._student()
        if not w.any():
            raise TrainingError("w became 0, where it has no gradient; lower the learning rate")
        of_v, _ = population_gradients(v, w, *self._teacher)
        of_w = expected_coarse_gradient(estimator, v, w, *self._teacher)
        for parameter, gradient in ((self._v, of_v), (self._w, of_w)):
            parameter.grad = gradient.to(parameter).reshape(parameter.shape)
        optimizer.step()
        return torch.tensor(self._loss, device=self._v.device)

    def _student(self) -> tuple[Tensor, Tensor]:
        """Return v [m] and w [n], float64, as they are now."""
        return _vector(self._v), _vector(self._w)

    def _loss_now(self) -> float:
        return float(population_loss(*self._student(), *self._teacher))

    def _cosine(self) -> float | None:
        if self._before is None or self._coarse is None or not self._before[1].any():
            return None
        own = population_gradients(*self._before, *self._teacher)[1]
        if not own.any() or not self._coarse.any():
            return None
        return float(F.cosine_similarity(self._coarse, own, dim=0, eps=0.0))


def _vector(x: Tensor) -> Tensor:
    """Return a copy, flat, float64, on the CPU."""
    return x.detach().flatten().to("cpu", torch.float64, copy=True)

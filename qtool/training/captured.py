"""A training step captured in a CUDA graph: one launch instead of thousands.

Small networks keep a GPU waiting for the next kernel; a graph holds all kernels of a step with the
addresses that they read and write. So everything that changes from step to step must be in tensors
that stay where they are: the batch, the learning rate, what schedules move.
"""

import torch
from torch import Tensor

from qtool.errors import TrainingError
from qtool.quantizers.activations import ActivationQuantizer
from qtool.training.step import TrainingStep

WARM_UP = 3  # steps that allocate what a graph cannot: states of the optimizer, workspaces
Kind = tuple[object, ...]


class CapturedStep:
    """A `TrainingStep` on CUDA whose kernels are captured at the fourth step, and then replayed.

    There is one graph for each kind of step: quantizers may look at their input's range at this
    step or not, and weights whose blend is done no longer train. What a call returns is overwritten
    by the next one.
    """

    def __init__(self, step: TrainingStep) -> None:
        """Take a step whose optimizer is capturable and whose model is traceable."""
        self.step = step
        self._seen: dict[Kind, int] = {}
        self._captured: dict[Kind, _Captured] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step on images [B, C, H, W]; return loss [] and logits [B, classes].

        Raises:
            TrainingError: If the step holds something that cannot be captured.
        """
        self.step.begin(len(images))
        kind = self._kind_of(images)
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        if seen <= WARM_UP:
            return self._warm_up(images, labels)
        if kind not in self._captured:
            self._captured[kind] = self._capture(images, labels)
        return self._captured[kind].replay(images, labels)

    def _kind_of(self, images: Tensor) -> Kind:
        model = self.step.model
        inputs = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
        looks = tuple(quantizer.observer.looks for quantizer in inputs)
        return images.shape, looks, sum(p.requires_grad for p in model.parameters())

    def _warm_up(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step outside any graph, on a stream of its own, as capturing will."""
        here = torch.cuda.current_stream(images.device)
        aside = torch.cuda.Stream(images.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            found = self.step.run(images, labels)
        here.wait_stream(aside)
        return found

    def _capture(self, images: Tensor, labels: Tensor) -> "_Captured":
        """Capture the step; nothing is computed yet."""
        own = images.clone(), labels.clone()  # where every batch is copied to
        graph = torch.cuda.CUDAGraph()
        self.step.optimizer.zero_grad(set_to_none=True)  # gradients are to lie in the graph's pool
        try:
            # loaders pin memory in a thread, whose calls another mode would let fail the capture
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = self.step.run(*own)
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrainingError(
                f"the training step cannot be captured in a CUDA graph: {reason}. "
                f"Leave out training.cuda_graph"
            ) from error
        return _Captured(graph, own, found)


class _Captured:
    """A graph, with the tensors that it reads a batch from and writes loss and logits to."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, own: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]
    ) -> None:
        self._graph, self._own, self._found = graph, own, found

    def replay(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for own, given in zip(self._own, (images, labels), strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._found

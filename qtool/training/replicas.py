"""One network in several processes: torch's DistributedDataParallel around a model that changes.

Weights whose blend is done no longer train, and torch's reducer waits for their gradients for ever:
it is made anew where other parameters train. Its buckets then depend on these alone, and stay as
they are, so that a run that goes on adds up gradients in the order in which it would have.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel

from qtool.graph.swap import Part
from qtool.training.synced_norms import SyncedNorm
from qtool.world.group import Group

Forward = Callable[[Tensor], Tensor]
# of two names, the newer of which torch has from some version on
_ASKED = signature(DistributedDataParallel.__init__).parameters
NO_BUFFERS = {next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _ASKED): False}
_parallel: Callable[..., DistributedDataParallel] = DistributedDataParallel


class _Body(nn.Module):
    """A model, run as it is or by a compiled form of its forward.

    Attributes:
        unused: a parameter without a gradient; torch warns at every start where there is none.
    """

    def __init__(self, model: nn.Module, run: Forward | None) -> None:
        super().__init__()
        self.model, self._run = model, run
        device = next((p.device for p in model.parameters()), None)
        self.unused = nn.Parameter(torch.zeros((), device=device))

    def forward(self, images: Tensor) -> Tensor:
        return (self._run or self.model)(images)


class Replicas:
    """The forward pass of a model whose gradients are the mean over processes.

    All processes must begin with the same model, and make the same calls.
    """

    def __init__(self, model: nn.Module, world: Group, run: Forward | None = None) -> None:
        """Take a model, and a compiled form of its forward where there is one."""
        self._model, self._world = model, world
        self._body = _Body(model, run)
        self._parameters = list(model.parameters())
        self._trains: list[bool] | None = None
        self._parallel: DistributedDataParallel | None = None
        self._means, self._others = _own_buffers(model)

    def running(self, run: Forward) -> "Replicas":
        """Return the same with a compiled form of the model's forward."""
        return Replicas(self._model, self._world, run)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of this process's images [B, C, H, W]."""
        trains = [parameter.requires_grad for parameter in self._parameters]
        if trains != self._trains:
            self._trains, self._parallel = trains, None
            if any(trains):
                self._parallel = self._made()
        return (self._parallel or self._body)(images)

    def kept_back(self, *, wanted: bool) -> AbstractContextManager[object]:
        """Return what lets gradients of passes inside stay in this process, until later ones."""
        if not wanted or self._parallel is None:
            return nullcontext()
        return self._parallel.no_sync()

    def agree_on_buffers(self) -> None:
        """Let what a step left in buffers be the same in all processes.

        Statistics of batch norms become their mean; other buffers that are no quantizer's are those
        of the first process.
        """
        self._world.average_in_place([b for norm, b in self._means if norm.training])
        if self._others:
            self._world.copy_from_first(self._others)

    def _made(self) -> DistributedDataParallel:
        return _parallel(
            self._body,
            process_group=self._world.group,
            **NO_BUFFERS,
            init_sync=False,
            # what a pass does not use has no gradient; and buckets stay as they are
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )


def _own_buffers(model: nn.Module) -> tuple[list[tuple[BatchNorm, Tensor]], list[Tensor]]:
    """Return batch norms' statistics that each process has its own of, and other such buffers."""
    means: list[tuple[BatchNorm, Tensor]] = []
    others: list[Tensor] = []
    inside = {m for part in model.modules() if isinstance(part, Part) for m in part.modules()}
    for module in model.modules():
        buffers = [b for b in module.buffers(recurse=False) if b.is_floating_point()]
        if isinstance(module, SyncedNorm):
            continue
        if isinstance(module, BatchNorm):
            means += [(module, buffer) for buffer in buffers]
        elif module not in inside:
            others += buffers
    return means, others

"""Whether parameters have moved, without looking at them: nothing here waits for a device.

A parameter's version counter moves with whatever writes to it, its place in memory with whoever
puts other data there. Fused optimizers, and those that write to `parameter.data`, move neither;
torch tells of their steps.
"""

from abc import ABC, abstractmethod
from functools import cache
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

Place = tuple[int, int]


def place_of(parameter: Tensor) -> Place:
    """Return a parameter's version and its place in memory."""
    try:
        return parameter._version, parameter.data_ptr()
    except RuntimeError:  # what torch.func puts in a parameter's stead has no memory of its own
        return 0, id(parameter)


def in_backward() -> bool:
    """Tell whether a backward pass runs, which gradient checkpointing calls modules from."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class WatchesOptimizers(ABC):
    """Is told of every step that an optimizer of torch's kind takes."""

    @abstractmethod
    def tell(self, optimizer: Optimizer) -> None:
        """Note a step of an optimizer."""


class _Taken(WatchesOptimizers):
    """Counts all steps of all optimizers."""

    def __init__(self) -> None:
        self.steps = 0

    def tell(self, optimizer: Optimizer) -> None:
        self.steps += 1


_watching: WeakSet[WatchesOptimizers] = WeakSet()
_taken = _Taken()


def watch_optimizers(watcher: WatchesOptimizers) -> None:
    """Tell a watcher of optimizers' steps from now on, for as long as someone holds it."""
    _hear_of_steps()
    _watching.add(watcher)


def steps_taken() -> int:
    """Return how many steps optimizers have taken since this was called for the first time."""
    watch_optimizers(_taken)
    return _taken.steps


@cache
def _hear_of_steps() -> None:
    register_optimizer_step_post_hook(_tell)


def _tell(optimizer: Optimizer, args: object, kwargs: object) -> None:
    if not torch.compiler.is_compiling():  # a compiled step moves the version counters
        for watcher in list(_watching):
            watcher.tell(optimizer)

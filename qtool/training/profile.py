"""Where the time of a training step goes, and how much memory training takes.

Time is cut at marks. A mark says which phase begins and so ends the one before it: every moment of
a step belongs to exactly one phase, and the phases add up to the step. On the CPU a mark is a
reading of the clock. On CUDA it is an event in the stream, so that phases are times of the device,
idle ones included; events are read when the epoch is over, as reading one waits for the device.

A quantizer is marked by hooks before and after its forward, and in the backward pass by hooks on
each autograd node that its forward made. Hooks on tensors would not do: the gradient of a
quantizer's input is complete only when every other layer that reads the input is done, too.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.weights import WeightQuantizer
from qtool.reports.results import Profile
from qtool.training.watcher import Batch, Watcher

PHASES = (
    "data",
    "forward",
    "weight_quantizers",
    "activation_quantizers",
    "backward",
    "optimizer",
    "rest",
)
WARM_UP = 3  # steps that still allocate, plan kernels and start workers
Mark = float | torch.cuda.Event  # seconds, or an event in the stream
MOST_STEPS = 200  # of an epoch: beyond, marks would take more memory and tell nothing new


class StepProfile(Watcher):
    """What the phases of the steps of a run took.

    `data` is waiting for the next batch, `forward` ends with the loss; both, and `backward`, are
    without the quantizers. A ReLU that is one with its quantizer counts as quantizer.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Mark]] = []  # phase, and when it begins
        self._steps: list[dict[str, float]] = []  # milliseconds of each phase
        self._measures = False

    @contextmanager
    def epoch(self, model: nn.Module) -> Iterator[None]:
        """Measure the steps of one epoch, with hooks on the model's quantizers."""
        handles = []
        for module in model.modules():
            if isinstance(module, FakeQuantize):
                before, after = self._hooks(module)
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after))
        self._marks, self._measures = [], True
        try:
            yield
        finally:
            self._measures = False
            for handle in handles:
                handle.remove()
        self._read_marks()

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; waiting for one begins a step, which lasts until the next."""
        for index in count():
            self.mark("data")
            self._measures = index < MOST_STEPS
            batch = next(batches, None)
            if batch is None:
                return
            self.mark("rest")
            yield batch

    def mark(self, phase: str) -> None:
        """Begin a phase, one of `PHASES`."""
        if self._measures:
            self._marks.append((phase, self._now()))

    def report(self) -> Profile | None:
        """Return what the median step took, the first few left out; None where there was no step.

        Its phases have the shares that they have in the middle half of the steps, ordered by time.
        """
        steps = self._steps[min(WARM_UP, len(self._steps) // 2) :]
        if not steps:
            return None
        steps.sort(key=_whole)
        whole, tail = median(map(_whole, steps)), len(steps) // 4
        typical = steps[tail : len(steps) - tail]
        total = sum(map(_whole, typical))
        # medians of each phase would not add up where steps differ
        share = {phase: sum(step[phase] for step in typical) / total for phase in PHASES}
        return Profile(
            steps=len(steps),
            milliseconds={phase: round(whole * part, 4) for phase, part in share.items()},
            share=share,
            step_milliseconds=round(whole, 4),
            peak_memory_bytes=peak_memory(self._device),
        )

    def _now(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # not always the current device's
        return event

    def _read_marks(self) -> None:
        """Turn the marks of an epoch into milliseconds; the last one only ends a step."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for (phase, start), (_, end) in pairwise(self._marks):
            if phase == "data":
                self._steps.append(dict.fromkeys(PHASES, 0.0))
            self._steps[-1][phase] += _milliseconds(start, end)
        self._marks = []

    def _hooks(self, quantizer: FakeQuantize) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what to call before and after a quantizer's forward."""
        weights = isinstance(quantizer, WeightQuantizer)
        phase = "weight_quantizers" if weights else "activation_quantizers"

        def begin(*args: object) -> None:
            self.mark(phase)

        def end(*args: object) -> None:
            self.mark("backward")

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            for node in _nodes(output, args[0]):
                node.register_prehook(begin)
                node.register_hook(end)
            self.mark("forward")

        return begin, after


def _milliseconds(start: Mark, end: Mark) -> float:
    """Return the time between two marks of the same kind."""
    if isinstance(start, float) and isinstance(end, float):
        return 1000 * (end - start)
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end)


def _whole(step: dict[str, float]) -> float:
    """Return the milliseconds of a step, all phases together."""
    return sum(step.values())


def _nodes(output: Tensor, given: Tensor) -> list[Node]:
    """Return the autograd nodes between a module's output and what it was given."""
    found: list[Node] = []
    ahead: list[Node | None] = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node is given.grad_fn or node in found or hasattr(node, "variable"):
            continue  # a node with a variable adds up the gradient of a parameter
        found.append(node)
        ahead += [following for following, _ in node.next_functions]
    return found


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: of the process, on CUDA of its tensors there.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere in KiB

"""What one real forward pass tells about a model: no symbolic tracing, which many models refuse.

Module hooks see which layer produced a tensor and which batch norm received it; a function mode
counts every use of that tensor, also by plain functions. A batch norm can be folded into a layer
only where it is the one user of the layer's output.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from qtool.quantizers.layers import QuantLayer

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
KEPT = 32  # images of the recorded batch that are kept


@dataclass
class Recording:
    """What was seen.

    Attributes:
        batch_norms: layer name -> name of the batch norm that alone reads its output.
        example: the first images of the batch, [<= 32, C, H, W]; None before the first pass.
        calls: how often each quantized layer was called in one pass.
    """

    batch_norms: dict[str, str] = field(default_factory=dict)
    example: Tensor | None = None
    calls: Counter[str] = field(default_factory=Counter)


class _CountUses(TorchFunctionMode):
    """Count how many functions take each watched tensor and return a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.watched: dict[int, Tensor] = {}  # keeps the tensors alive, so that ids stay unique

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        seen = [id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.watched]
        result = func(*args, **kwargs)
        if seen and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.uses.update(seen)
        return result


@contextmanager
def _recording(model: nn.Module, into: Recording) -> Iterator[None]:
    mode = _CountUses()
    producer: dict[int, str] = {}
    norm_calls: Counter[str] = Counter()
    pairs: list[tuple[int, str]] = []
    handles = []

    def after_layer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            into.calls[name] += 1
            producer[id(output)] = name
            mode.watched[id(output)] = output

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            norm_calls[name] += 1
            if args and id(args[0]) in producer:
                pairs.append((id(args[0]), name))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            handles.append(module.register_forward_hook(after_layer(name)))
        elif type(module) in BATCH_NORMS and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    into.calls.clear()
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
    into.batch_norms = {
        producer[output]: norm
        for output, norm in pairs
        if mode.uses[output] == 1 and norm_calls[norm] == 1 and into.calls[producer[output]] == 1
    }


def record_first_forward(
    model: nn.Module, into: Recording, then: Callable[[], None] = lambda: None
) -> None:
    """Record the next forward pass of `model`, whoever makes it, and only that one.

    Args:
        model: holds quantized layers.
        into: is filled.
        then: called after the pass, unless it failed.
    """
    opened: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        opened.append(_recording(model, into))
        opened[0].__enter__()
        if args and isinstance(args[0], Tensor):
            into.example = args[0].detach()[:KEPT].clone()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        first.remove()
        last.remove()
        if opened:
            opened.pop().__exit__(None, None, None)
        if output is not None:
            then()

    first = model.register_forward_pre_hook(before)
    last = model.register_forward_hook(after, always_call=True)


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Run forward passes that leave batch norm statistics and random numbers as they were."""
    norms = {
        name: buffer.clone()
        for owner, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module.named_buffers(prefix=owner, recurse=False)
    }
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        yield
        buffers = dict(model.named_buffers())
        for name, value in norms.items():
            buffers[name].copy_(value)

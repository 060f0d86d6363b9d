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
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
KEPT = 32  # images of the recorded batch that are kept
Then = Callable[[nn.Module, set[str]], None]


@dataclass(frozen=True)
class Watched:
    """Which types of modules are looked at: layers with a `weight`, and ReLUs that round."""

    layers: type[nn.Module]
    relus: type[nn.Module]


@dataclass
class Recording:
    """What was seen.

    Attributes:
        batch_norms: layer name -> name of the batch norm that alone reads its output.
        example: the first images of the batch, [<= 32, C, H, W]; None before the first pass.
        calls: how often each quantized layer was called in one pass.
        feeds: layer name -> names of the layers that take its output, with no other quantized
            layer between them.
    """

    batch_norms: dict[str, str] = field(default_factory=dict)
    feeds: dict[str, set[str]] = field(default_factory=dict)
    example: Tensor | None = None
    calls: Counter[str] = field(default_factory=Counter)


class _CountUses(TorchFunctionMode):
    """Count how many functions read each watched tensor, and follow what becomes of it.

    Attributes:
        origins: tensor -> names of the layers that it was computed from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.origins = WeakTensorKeyDictionary()
        self.watched: dict[int, Tensor] = {}  # keeps the tensors alive, so that ids stay unique

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # looked up before the call: a function in place may return the very same tensor
        leaves = tree_leaves((args, kwargs))
        origins = self.origins_of(leaves)
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # what returns neither a tensor nor nothing only asks for a shape or the like
        if result is None or made:
            self.count(leaves)
        for tensor in made if origins else []:
            self.origins[tensor] = origins
        return result

    def origins_of(self, values: Any) -> frozenset[str]:
        """Return the layers that any of the tensors among `values` was computed from."""
        tensors = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
        return frozenset().union(*(self.origins[v] for v in tensors if v in self.origins))

    def count(self, values: Any) -> None:
        """Count one use of each watched tensor among `values`."""
        self.counts.update(id(v) for v in tree_leaves(values) if id(v) in self.watched)


class _FirstPass:
    """Hooks that record a model's first pass that succeeds, and then remove themselves.

    Their methods are bound, so that a copy of a model that has not run yet records its own pass.
    """

    def __init__(self, model: nn.Module, into: Recording, then: Then, watched: Watched) -> None:
        self.into, self.then, self.watched = into, then, watched
        self.first = model.register_forward_pre_hook(self.before)
        self.seen: _Seen | None = None

    def before(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Start to watch: every layer's output, every batch norm's input, every weight."""
        self.seen = seen = _Seen()
        if args and isinstance(args[0], Tensor):
            seen.example = args[0].detach()[:KEPT].clone()
        for name, module in model.named_modules():
            if isinstance(module, self.watched.layers):
                weight = module.get_parameter("weight")
                seen.weights[name] = id(weight)
                seen.uses.watched[id(weight)] = weight
                seen.handles.append(module.register_forward_hook(seen.after_layer(name)))
            elif isinstance(module, self.watched.relus):
                seen.handles.append(module.register_forward_hook(seen.after_relu))
            elif type(module) in BATCH_NORMS and module.track_running_stats:
                seen.handles.append(module.register_forward_pre_hook(seen.before_norm(name)))
        # registered last, so that it runs after the hooks of a model that is a single layer
        seen.handles.append(model.register_forward_hook(self.after, always_call=True))
        seen.uses.__enter__()

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """Stop watching; keep what was seen, unless the pass failed."""
        seen, self.seen = self.seen, None
        assert seen is not None
        seen.uses.__exit__(None, None, None)
        for handle in seen.handles:
            handle.remove()
        if output is None:
            return
        self.first.remove()
        seen.uses.count(output)
        self.into.calls.update(seen.calls)
        self.into.example = seen.example
        self.into.batch_norms = seen.batch_norms()
        self.into.feeds = seen.feeds
        self.then(model, seen.bypassed())


class _Seen:
    """What is seen during one pass."""

    def __init__(self) -> None:
        self.uses = _CountUses()
        self.calls: Counter[str] = Counter()
        self.norm_calls: Counter[str] = Counter()
        self.producer: dict[int, str] = {}
        self.feeds: dict[str, set[str]] = {}
        self.pairs: list[tuple[int, str]] = []
        self.weights: dict[str, int] = {}
        self.handles: list[RemovableHandle] = []
        self.example: Tensor | None = None

    def after_layer(self, name: str) -> Callable[..., None]:
        """Return the hook that notes a layer's output."""

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.calls[name] += 1
            self.producer[id(output)] = name
            self.uses.watched[id(output)] = output
            for source in self.uses.origins_of(args):
                self.feeds.setdefault(source, set()).add(name)
            self.uses.origins[output] = frozenset([name])

        return hook

    def after_relu(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Note whose output a quantized ReLU took; what rounds is no function that is seen."""
        self.uses.origins[output] = self.uses.origins_of(args)

    def before_norm(self, name: str) -> Callable[..., None]:
        """Return the hook that notes whose output a batch norm takes."""

        def hook(module: nn.Module, args: Any) -> None:
            self.norm_calls[name] += 1
            if args and id(args[0]) in self.producer:
                self.pairs.append((id(args[0]), name))

        return hook

    def batch_norms(self) -> dict[str, str]:
        """Return layer -> batch norm where both ran once and nothing else read the output."""
        return {
            self.producer[output]: norm
            for output, norm in self.pairs
            if self.uses.counts[output] == 1
            and self.norm_calls[norm] == 1
            and self.calls[self.producer[output]] == 1
        }

    def bypassed(self) -> set[str]:
        """Return the layers whose weight was used although they were not called."""
        used = self.uses.counts
        return {name for name, w in self.weights.items() if used[w] and not self.calls[name]}


def record_first_forward(model: nn.Module, into: Recording, then: Then, watched: Watched) -> None:
    """Record the next forward pass of `model` that succeeds, whoever makes it.

    Args:
        model: holds quantized layers.
        into: is filled.
        then: called after the pass with the model and the names of the layers whose weights it
            used without calling them.
        watched: the types of its modules that are looked at.
    """
    _FirstPass(model, into, then, watched)


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
        try:
            yield
        finally:
            buffers = dict(model.named_buffers())
            for name, value in norms.items():
                buffers[name].copy_(value)

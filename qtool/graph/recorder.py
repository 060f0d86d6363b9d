"""Recording one real forward pass: no symbolic tracing, which many models refuse.

Hooks see the calls of the modules that are watched; one function mode sees every call of a function
beside and inside them. Both tell one recorder, which numbers the values that go between them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from qtool.graph.inputs import Inputs, tensors_in
from qtool.graph.recording import Call, FunctionCall, ModuleCall, Recording, Role, Value
from qtool.graph.sites import Site

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
KEPT = 32  # rows of the recorded batch that are kept
Then = Callable[[nn.Module, Recording], None]


@dataclass(frozen=True)
class Watched:
    """Which types of modules are watched, beside batch norms with running statistics.

    Attributes:
        layers: have a parameter `weight`.
        relus: what counts as a ReLU.
        exactly: whether subclasses of these are left out.
    """

    layers: tuple[type[nn.Module], ...]
    relus: tuple[type[nn.Module], ...]
    exactly: bool = False

    def role_of(self, module: nn.Module) -> Role | None:
        """Return as what a module is watched; None where it is not."""
        if self._is_one(module, self.layers):
            return "layer"
        if self._is_one(module, self.relus):
            return "relu"
        return "norm" if type(module) in BATCH_NORMS and module.track_running_stats else None

    def _is_one(self, module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
        return type(module) in types if self.exactly else isinstance(module, types)


class _Recorder(TorchFunctionMode):
    """Takes down the calls of one pass, and numbers its values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._numbers = WeakTensorKeyDictionary()  # tensor -> the value that it holds now
        self._count = 0
        self._open: list[tuple[Site, Value | None, tuple[Value, ...]]] = []  # modules that run now
        self._began: Counter[str] = Counter()

    def values(self, tree: object) -> tuple[Value, ...]:
        """Return the values that the tensors in a tree hold; new ones for new tensors."""
        return tuple(self._value(leaf) for leaf in tensors_in(tree))

    def begin(self, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note that a watched module is called."""
        read = self.values((args, kwargs))
        self._open.append((Site(name, self._began[name]), self._subject(args), read))
        self._began[name] += 1

    def end(self, name: str, role: Role, output: object) -> None:
        """Note what a watched module returned; None where its call failed, or never began."""
        if not self._open or self._open[-1][0].module != name:
            return
        site, subject, read = self._open.pop()
        if output is None:
            self._began[name] -= 1
        else:
            self.calls.append(ModuleCall(subject, read, self._make(output), site, role))

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, and note it."""
        kwargs = kwargs or {}
        # looked up before the call: a function in place may return the very same tensor
        subject, read = self._subject(args), self._read((args, kwargs))
        result = func(*args, **kwargs)
        # what returns neither a tensor nor nothing only asks for a shape or the like
        if result is None or any(True for _ in tensors_in(result)):
            name = getattr(func, "__name__", "")
            if not self._open:
                self.calls.append(FunctionCall(subject, read, self._make(result), name))
            elif read:
                self.calls.append(FunctionCall(subject, read, (), name, self._open[-1][0]))
        return result

    def _read(self, tree: object) -> tuple[Value, ...]:
        """Return the values in a tree; inside a watched module, only those from outside."""
        if not self._open:
            return self.values(tree)
        return tuple(self._numbers[leaf] for leaf in tensors_in(tree) if leaf in self._numbers)

    def _subject(self, args: tuple[object, ...]) -> Value | None:
        """Return the value of the first argument."""
        read = self._read(args[0]) if args and isinstance(args[0], Tensor) else ()
        return read[0] if read else None

    def _value(self, tensor: Tensor) -> Value:
        return self._numbers[tensor] if tensor in self._numbers else self._new(tensor)

    def _make(self, tree: object) -> tuple[Value, ...]:
        """Give every tensor in a tree a new value."""
        return tuple(self._new(leaf) for leaf in tensors_in(tree))

    def _new(self, tensor: Tensor) -> Value:
        self._numbers[tensor] = value = self._count
        self._count += 1
        return value


class _Pass:
    """What one pass needs until it is over."""

    def __init__(self) -> None:
        self.recorder = _Recorder()
        self.handles: list[RemovableHandle] = []
        self.weights: dict[str, Value] = {}
        self.inputs: tuple[Value, ...] = ()
        self.example: Inputs | None = None

    def watch(self, module: nn.Module, name: str, role: Role, *, running: bool) -> None:
        """Note the calls of a module; `running`: it is the model, and its pre-hooks run now."""
        if role == "layer":
            self.weights[name] = self.recorder.values(module.get_parameter("weight"))[0]

        def begin(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self.recorder.begin(name, args, kwargs)

        def end(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            self.recorder.end(name, role, output)

        if not running:
            self.handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        self.handles.append(module.register_forward_hook(end, always_call=True))

    def recording(self, output: object) -> Recording:
        """Return what was seen, now that the model has returned its output."""
        outputs = self.recorder.values(output)
        calls = tuple(self.recorder.calls)
        return Recording(calls, self.weights, self.inputs, outputs, self.example)


class _FirstPass:
    """Hooks that record a model's first pass that succeeds, and then remove themselves.

    Their methods are bound, so that a copy of a model that has not run yet records its own pass.
    """

    def __init__(self, model: nn.Module, watched: Watched, then: Then) -> None:
        self.watched, self.then = watched, then
        self.first = model.register_forward_pre_hook(self.before, with_kwargs=True)
        self.seen: _Pass | None = None

    def before(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Start to watch."""
        self.seen = seen = _Pass()
        inputs = Inputs(args, kwargs)
        seen.example = inputs.first(KEPT) if inputs.tensors else None
        seen.inputs = seen.recorder.values((args, kwargs))
        for name, module in model.named_modules():
            role = self.watched.role_of(module)
            if role is not None:
                seen.watch(module, name, role, running=module is model)
                if module is model:
                    seen.recorder.begin(name, args, kwargs)
        # registered last, so that it runs after the hooks of a model that is a single layer
        seen.handles.append(model.register_forward_hook(self.after, always_call=True))
        seen.recorder.__enter__()

    def after(self, model: nn.Module, args: tuple[object, ...], output: object) -> None:
        """Stop watching; pass on what was seen, unless the pass failed."""
        seen, self.seen = self.seen, None
        assert seen is not None
        seen.recorder.__exit__(None, None, None)
        for handle in seen.handles:
            handle.remove()
        if output is not None:
            self.first.remove()
            self.then(model, seen.recording(output))


def record_first_forward(model: nn.Module, watched: Watched, then: Then) -> None:
    """Record the next forward pass of `model` that succeeds, whoever makes it.

    Args:
        model: any model; it is left as it was, but for hooks until the pass is over.
        watched: the types of its modules that are watched.
        then: called with the model and the recording right after the pass.
    """
    _FirstPass(model, watched, then)


def record_forward(model: nn.Module, watched: Watched, *given: object) -> Recording:
    """Run `model` on what is given by position, or on Inputs, and return what that told of it.

    Raises:
        ValueError: If the model returns nothing, and so no pass was recorded.
    """
    found: list[Recording] = []
    inputs = given[0] if given and isinstance(given[0], Inputs) else Inputs(given)
    hooks = _FirstPass(model, watched, lambda model, recording: found.append(recording))
    try:
        inputs.call(model)
    finally:
        hooks.first.remove()
    if not found:
        raise ValueError("the model returned nothing")
    return found[0]


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

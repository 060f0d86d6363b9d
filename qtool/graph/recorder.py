"""Recording one real forward pass: no symbolic tracing, which many models refuse.

Hooks see the calls of the modules that are watched; one function mode sees every call of a function
beside and inside them. Both write on one tape.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from qtool.graph.inputs import Inputs
from qtool.graph.norms import find_norms, may_be_norm
from qtool.graph.own_norm import has_own_norm
from qtool.graph.recording import Recording, Role
from qtool.graph.swap import Part
from qtool.graph.tape import Tape
from qtool.graph.values import Value

KEPT = 32  # rows of the recorded batch that are kept
Then = Callable[[nn.Module, Recording], None]


@dataclass(frozen=True)
class Watched:
    """Which types of modules are watched, beside all that may be norms.

    Attributes:
        layers: have a parameter `weight`.
        relus: what counts as a ReLU.
        exactly: whether subclasses of these are left out.
    """

    layers: tuple[type[nn.Module], ...]
    relus: tuple[type[nn.Module], ...]
    exactly: bool = False

    def roles(self, model: nn.Module) -> dict[str, Role]:
        """Return as what the modules of a model are watched, in its order.

        A norm holds no layer, is no part of a layer or ReLU, and is none of qtool's.
        """
        found: dict[str, Role] = {}
        parts: set[nn.Module] = set()  # of layers and ReLUs
        holders = {n for n, m in model.named_modules() if any(map(self._is_layer, m.modules()))}
        for name, module in model.named_modules():
            if self._is_layer(module):
                found[name] = "layer"
            elif self._is_one(module, self.relus):
                found[name] = "relu"
            elif isinstance(module, Part):
                parts.update(module.modules())
                continue
            elif (
                name in holders
                or module in parts
                or has_own_norm(module)
                or not may_be_norm(module)
            ):
                continue
            else:
                found[name] = "norm"
            if found[name] != "norm":
                parts.update(module.modules())
        return found

    def _is_layer(self, module: nn.Module) -> bool:
        return self._is_one(module, self.layers)

    def _is_one(self, module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
        return type(module) in types if self.exactly else isinstance(module, types)


def _may_be_norm(module: nn.Module) -> bool:
    return may_be_norm(module) and not has_own_norm(module)


class _Pass:
    """What one pass needs until it is over."""

    def __init__(self, roles: dict[str, Role]) -> None:
        self.tape = Tape()
        self.roles = roles
        self.handles: list[RemovableHandle] = []
        self.weights: dict[str, Value] = {}
        self.inputs: tuple[Value, ...] = ()
        self.example: Inputs | None = None

    def watch(self, module: nn.Module, name: str, role: Role, *, running: bool) -> None:
        """Note the calls of a module; `running`: it is the model, and its pre-hooks run now."""
        if role == "layer":
            self.weights[name] = self.tape.values(module.get_parameter("weight"))[0]

        def begin(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self.tape.begin(name, role, args, kwargs)

        def end(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            self.tape.end(name, output)

        if not running:
            self.handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        # before hooks of the user's, whose functions are no part of the module
        self.handles.append(module.register_forward_hook(end, always_call=True, prepend=True))

    def recording(self, model: nn.Module, output: object) -> Recording:
        """Return what was seen, now that the model has returned its output."""
        outputs = self.tape.values(output)
        told = Recording(
            tuple(self.tape.calls),
            self.weights,
            self.inputs,
            outputs,
            self.example,
            training=model.training,
            may_be_norms=tuple(name for name, role in self.roles.items() if role == "norm"),
        )
        return replace(told, norms=tuple(find_norms(model, told)))


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
        self.seen = seen = _Pass(self.watched.roles(model))
        inputs = Inputs(args, kwargs)
        seen.example = inputs.first(KEPT) if inputs.tensors else None
        seen.inputs = seen.tape.values((args, kwargs))
        for name, role in seen.roles.items():
            module = model.get_submodule(name)
            seen.watch(module, name, role, running=module is model)
            if module is model:
                seen.tape.begin(name, role, args, kwargs)
        # registered last, so that it runs after the hooks of a model that is a single layer
        seen.handles.append(model.register_forward_hook(self.after, always_call=True))
        seen.tape.__enter__()

    def after(self, model: nn.Module, args: tuple[object, ...], output: object) -> None:
        """Stop watching; pass on what was seen, unless the pass failed."""
        seen, self.seen = self.seen, None
        assert seen is not None
        seen.tape.__exit__(None, None, None)
        for handle in seen.handles:
            handle.remove()
        if output is not None:
            self.first.remove()
            self.then(model, seen.recording(model, output))


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

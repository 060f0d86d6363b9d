"""Which block runs, and whose calls functions are: one TorchFunctionMode counts them.

The outermost block of a thread enters the mode, for the pass of a model or for its own call alone,
and every block that runs inside puts a frame into it: names, counts, and what stands at its sites.
Nothing of it is kept on a model, so that threads, copies, and blocks that a gradient checkpoint
runs again, have frames of their own. torch.compile and torch.export trace through it all.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qtool.graph.inputs import in_order, map_tensors
from qtool.graph.sites.counted import BlockCalls, Pair, check_path
from qtool.graph.sites.functions import function_of

# state names are layer1.0.sites.relu1.scale
SITES = "sites"
# what a block, or a leaf, knows of its calls, among its attributes
CALLS = "qtool_calls"
T = TypeVar("T")
P = ParamSpec("P")


class Frame:
    """One call of a block that runs.

    Attributes:
        block: the module.
        calls: what it knows of its calls.
        leaf: name of the leaf that runs, "" while the block's own code does.
        counts: leaf and function -> calls so far.
    """

    def __init__(self, block: nn.Module, calls: BlockCalls) -> None:
        self.block = block
        self.calls = calls
        self.leaf = ""
        self.counts: dict[Pair, int] = {}


class CountedCalls(TorchFunctionMode):
    """Sends each call at a site of the block that runs to what stands there.

    Attributes:
        frame: of the innermost block; None where nothing is to be counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frame: Frame | None = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, or what stands at its call."""
        frame = self.frame
        kwargs = kwargs or {}
        if frame is None:
            return func(*args, **kwargs)
        name = function_of(func, args, kwargs)
        if name is None or name not in frame.calls.functions:
            return func(*args, **kwargs)
        return call_in(frame, name, func, args, kwargs)


def call_in(
    frame: Frame,
    name: str,
    func: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Count a call of a function of this name, and do its work, or let what stands there do it."""
    calls = frame.calls
    if frame.leaf in calls.dropouts and name != "dropout":
        return func(*args, **kwargs)
    pair = (frame.leaf, name)
    call = frame.counts.get(pair, 0)
    frame.counts[pair] = call + 1
    keys = calls.keys.get(pair)
    key = None if keys is None else keys.get(call)
    if key is None:
        return func(*args, **kwargs)
    return site_in(frame.block, key).at(func, args, kwargs)


class AtSite(Protocol):
    """What stands at a site."""

    def at(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Do the work of a call: call the function, or something in its place.

        Functions that it calls itself are no calls of the block.

        Args:
            function: what the block called, such as torch.nn.functional.relu or torch.Tensor.add;
                for an input of the model a function that returns its argument.
            args: what it was called with by position.
            kwargs: what it was called with by name.
        """
        ...


def site_in(block: nn.Module, key: str) -> AtSite:
    """Return what stands at one of a block's sites."""
    stand = cast(nn.ModuleDict, block._modules[SITES])
    return cast(AtSite, stand[key])


def running() -> CountedCalls | None:
    """Return the mode that this thread is in; None outside of all blocks."""
    for place in range(torch._C._len_torch_function_stack() - 1, -1, -1):
        mode = torch._C._get_function_stack_at(place)
        if isinstance(mode, CountedCalls):
            return mode
    return None


def calls_of(block: nn.Module) -> BlockCalls:
    """Return what a block knows of its calls."""
    return cast(BlockCalls, block.__dict__[CALLS])


def run_block(
    block: nn.Module,
    forward: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Return what a block's own forward does, its calls counted in a frame."""
    if CALLS not in block.__dict__:  # made of this class, but never installed
        return forward(block, *args, **kwargs)
    mode = running()
    if mode is None:
        mode = CountedCalls()
        with mode:
            return _in_frame(mode, block, forward, args, kwargs)
    return _in_frame(mode, block, forward, args, kwargs)


def _in_frame(
    mode: CountedCalls,
    block: nn.Module,
    forward: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    calls = calls_of(block)
    outer = mode.frame
    mode.frame = frame = Frame(block, calls) if calls.functions else None
    try:
        if calls.inputs:
            args, kwargs = _through_sites(block, calls, args, kwargs)
        output = forward(block, *args, **kwargs)
    finally:
        mode.frame = outer
    if frame is not None:
        check_path(frame.calls, frame.counts, training=block.training)
    return output


def run_leaf(leaf: nn.Module, compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return compute(*args, **kwargs), its calls counted as those of a leaf."""
    mode = running()
    frame = None if mode is None else mode.frame
    if frame is None:
        return compute(*args, **kwargs)
    outer, frame.leaf = frame.leaf, _leaf_name(leaf)
    try:
        return compute(*args, **kwargs)
    finally:
        frame.leaf = outer


def _leaf_name(leaf: nn.Module) -> str:
    name = leaf.__dict__.get(CALLS, "")
    return name if isinstance(name, str) else ""  # the model itself


def apart(compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return compute(*args, **kwargs); functions that it calls are no calls of a block."""
    mode = running()
    if mode is None:
        return compute(*args, **kwargs)
    if torch._C._get_function_stack_at(torch._C._len_torch_function_stack() - 1) is mode:
        torch._C._pop_torch_function_stack()  # what is not asked costs nothing
        try:
            return compute(*args, **kwargs)
        finally:
            torch._C._push_on_torch_function_stack(mode)
    outer, mode.frame = mode.frame, None  # another mode was entered by a block
    try:
        return compute(*args, **kwargs)
    finally:
        mode.frame = outer


def run_call(leaf: nn.Module, function: str, made: Tensor) -> object:
    """Count a call whose work a leaf has done apart; return what stands there makes of `made`.

    Where nothing stands, that is `made` itself.
    """
    mode = running()
    frame = None if mode is None else mode.frame
    if mode is None or frame is None or function not in frame.calls.functions:
        return made
    outer, frame.leaf = frame.leaf, _leaf_name(leaf)
    mode.frame = None
    try:
        return call_in(frame, function, _itself, (made,), {})
    finally:
        mode.frame, frame.leaf = frame, outer


def run_unseen(
    leaf: nn.Module, name: str, function: Callable[[Tensor], Tensor], x: Tensor
) -> object:
    """Return function(x), counted as a leaf's call although torch.compile tells no mode of it."""
    mode = running()
    frame = None if mode is None else mode.frame
    if frame is None or name not in frame.calls.functions:
        return function(x)
    outer, frame.leaf = frame.leaf, _leaf_name(leaf)
    try:
        return apart(call_in, frame, name, function, (x,), {})
    finally:
        frame.leaf = outer


def runs_apart(forward: Callable[P, T]) -> Callable[P, T]:
    """Make a forward one whose functions are no calls of the block that runs the module."""

    @wraps(forward)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        return apart(forward, *args, **kwargs)

    return alone


def _through_sites(
    block: nn.Module,
    calls: BlockCalls,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Pass the tensors that a model is given through what stands at its inputs."""
    seen = 0

    def passed(tensor: Tensor) -> object:
        nonlocal seen
        key = calls.inputs.get(seen)
        seen += 1
        if key is None:
            return tensor
        return apart(site_in(block, key).at, _itself, (tensor,), {})

    given = (args, in_order(calls.arguments, kwargs))
    return cast(tuple[tuple[object, ...], dict[str, object]], map_tensors(passed, given))


def _itself(value: object) -> object:
    return value

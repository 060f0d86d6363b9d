"""The function mode that takes down what blocks and leaves call, as operations on values.

A tensor that is a parameter or buffer, or was computed from such alone, is a constant, no value.

What a function in place returns is given on as another tensor of the same memory. Who reads the
tensor that was written to goes on with that one: what is put in the place of the result would not
reach it, and the operation is lost. The same is done where a function returns what it was given, so
that both can be told apart.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from qtool.graph.inputs import tensors_in
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.facts import Facts, facts_of, operands
from qtool.graph.sites.functions import LAYERS, function_of, reads_values
from qtool.graph.sites.value_graph import Counts, Operation
from qtool.graph.values import Value, Values


@dataclass
class _Frame:
    """One call of a block that runs."""

    block: str
    numbers: Counter[str] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Given:
    """The tensors that a call was given, looked up before it: it may write to them.

    Attributes:
        reads: values.
        constants: how many others.
    """

    tensors: list[Tensor]
    reads: list[Value]
    constants: int

    @classmethod
    def of(cls, mode: "ValueMode", tree: object) -> "_Given":
        tensors = list(tensors_in(tree))
        reads = mode.read(tensors)
        return cls(tensors, reads, len(tensors) - len(reads))


class ValueMode(TorchFunctionMode):
    """Takes down the operations of one pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.counts: dict[str, list[Counts]] = {}
        self.inputs: tuple[Value, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self._frames: list[_Frame] = []
        self._within: list[str] = []  # the leaf that runs, and its parts that do
        self._dropout: _Given | None = None  # what the dropout was given that runs
        self._values = Values()
        self._constant: set[Value] = set()  # what was computed from constants alone
        self._stored = WeakTensorKeyDictionary()  # parameters and buffers -> names
        self._writers = WeakTensorKeyDictionary()  # tensor -> who wrote to it in place
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._stored[tensor] = name

    def begin(self, given: object) -> None:
        """Note what the model is given, and that it runs."""
        self.inputs = tuple(self._values.of(tensor) for tensor in tensors_in(given))
        self.enter_block("")
        self.__enter__()

    def finish(self, output: object) -> object:
        """Note what the model returns, None where it failed."""
        self.__exit__(None, None, None)
        self.outputs = tuple(self.read(tensors_in(output)))
        self._lose(tensors_in(output))
        return self.leave_block(output)

    def enter_block(self, name: str) -> None:
        """Note that a block runs."""
        self._frames.append(_Frame(name))

    def leave_block(self, output: object) -> object:
        """Note that a block is done, and what it counted."""
        frame = self._frames.pop()
        ways = self.counts.setdefault(frame.block, [])
        if dict(frame.calls) not in ways:
            ways.append(dict(frame.calls))
        return output

    @property
    def in_leaf(self) -> bool:
        """Tell whether a leaf runs."""
        return bool(self._within)

    def enter_leaf(self, name: str) -> None:
        """Note that a leaf runs, or a part of one."""
        self._within.append(name)

    def leave_leaf(self, output: object) -> object:
        """Note that it is done."""
        self._within.pop()
        return output

    def enter_dropout(self, name: str, given: object) -> None:
        """Note that a leaf runs that is a dropout; what it calls is its own affair."""
        self.enter_leaf(name)
        self._dropout = _Given.of(self, given)

    def leave_dropout(self, output: object) -> object:
        """Note what it made, and return what stands for its output; None where it failed."""
        given = self._dropout
        if output is not None and given is not None and given.reads:
            output = self._operation("dropout", {}, given, output)
        self._dropout = None
        return self.leave_leaf(output)

    def unseen(self, name: str, given: object, output: object) -> None:
        """Note as one operation what a module made by means that no function told of."""
        made = [t for t in tensors_in(output) if not self._is_known(t)]
        if made and self._dropout is None:
            self._note("other", _Given.of(self, given), {"name": name}, made)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, and note it."""
        kwargs = kwargs or {}
        if self._dropout is not None:
            return func(*args, **kwargs)
        name = function_of(func, args, kwargs) or "other"
        given = _Given.of(self, (args, kwargs) if reads_values(func) else ())
        result = func(*args, **kwargs)
        made = list(tensors_in(result))
        if result is not None and not made:
            return result  # a shape or the like
        if not given.reads:
            if name != "other" and len(self._within) < 2:
                self._frames[-1].calls[self._leaf, name] += 1
            changed = self._values.changed()
            self._constant.update(self._values.new(tensor) for tensor in (*changed, *made))
            return result
        facts = facts_of(name, func, args, kwargs, made)
        if name in ("add", "sub", "mul", "div"):
            numbers = [n for n in operands(args, kwargs) if isinstance(n, int | float)]
            facts["constants"] = given.constants + len(numbers)
        elif name == "cat":
            facts["constants"] = given.constants
        elif name in (*LAYERS, "batch_norm"):
            facts |= self._weight(args, kwargs, 3 if func is F.batch_norm else 1)
        return self._operation(name, facts, given, result)

    @property
    def _leaf(self) -> str:
        return self._within[0] if self._within else ""

    def _operation(self, name: str, facts: Facts, given: _Given, result: object) -> object:
        """Note an operation; return its result, under other names where these were given to it."""
        known = {id(tensor) for tensor in given.tensors}

        def renamed(leaf: object) -> object:
            if isinstance(leaf, Tensor) and id(leaf) in known and leaf not in self._stored:
                return leaf.view_as(leaf)
            return leaf

        if any(id(tensor) in known for tensor in tensors_in(result)):
            result = tree_map(renamed, result)
        made = [tensor for tensor in tensors_in(result) if tensor not in self._stored]
        self._note(name, given, facts, made)
        return result

    def _note(
        self,
        name: str,
        given: _Given,
        facts: Facts,
        made: Sequence[Tensor],
    ) -> None:
        """Put an operation on the tape, and give what it made, and wrote to, new values."""
        self._lose(given.tensors)
        frame, pair = self._frames[-1], (self._leaf, name)
        site = CallSite(frame.block, name, frame.numbers[name], pair[0], frame.calls[pair])
        frame.numbers[name] += 1
        if name == "other":
            site = replace(site, call=site.number)
        else:
            frame.calls[pair] += 1
        values = [self._values.new(tensor) for tensor in made]
        makes, shapes = list(values), [tuple(tensor.shape) for tensor in made]
        index, changed = len(self.operations), self._values.changed()
        for tensor in changed:
            same = [v for v, t in zip(values, made, strict=True) if _is_same_memory(t, tensor)]
            if same:
                self._values.hold(tensor, same[0])
            else:
                makes.append(self._values.new(tensor))
                shapes.append(tuple(tensor.shape))
            self._writers[tensor] = (*self._writers_of(tensor), index)
        self.operations.append(
            Operation(
                site, tuple(given.reads), tuple(makes), tuple(shapes), facts, in_place=bool(changed)
            )
        )

    def read(self, tensors: Iterable[Tensor]) -> list[Value]:
        """Return the values of tensors, constants left out."""
        return [self._values.of(tensor) for tensor in tensors if not self._is_constant(tensor)]

    def _lose(self, tensors: Iterable[Tensor]) -> None:
        """Note that tensors are read that were written to in place under other names."""
        for tensor in tensors:
            for writer in self._writers_of(tensor):
                self.operations[writer] = replace(self.operations[writer], lost=True)

    def _writers_of(self, tensor: Tensor) -> tuple[int, ...]:
        return self._writers.get(tensor) or ()

    def _is_constant(self, tensor: Tensor) -> bool:
        return tensor in self._stored or self._values.known(tensor) in self._constant

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor in self._stored or self._values.known(tensor) is not None

    def _weight(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], position: int
    ) -> Facts:
        weight = kwargs.get("weight", args[position] if len(args) > position else None)
        stored = isinstance(weight, Tensor) and weight in self._stored
        return {"weight": self._stored[weight]} if stored else {}


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())

"""Graphs of values made by hand, call by call, for tests of rules that look at nothing else."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.value_graph import Operation, ValueGraph
from qtool.graph.values import Value
from qtool.numerics.ranges import TRAINED
from qtool.quantizers.places.placement import Placement
from qtool.quantizers.places.rules import place
from qtool.quantizers.places.wanted import wants_of
from qtool.settings.quantization import Quantization
from qtool.settings.section import check

IMAGE = (1, 4, 8, 8)


class Pass:
    """One pass of a network that is nowhere but here.

    Calls are given the values that they read, those of layers and norms their names, too.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.inputs: list[Value] = []
        self.layers: list[str] = []
        self.norms: list[str] = []
        self._values = 0
        self._block = ""
        self._numbers: dict[str, Counter[str]] = {"": Counter()}
        self._calls: dict[str, Counter[tuple[str, str]]] = {"": Counter()}

    def input(self) -> Value:
        """Return a tensor that the model is given."""
        self.inputs.append(self._new())
        return self.inputs[-1]

    @contextmanager
    def block(self, name: str) -> Iterator[None]:
        """Let a block run; each time its calls have the same numbers."""
        around, self._block = self._block, name
        self._numbers[name], self._calls[name] = Counter(), Counter()
        yield
        self._block = around

    def __call__(
        self,
        function: str,
        *reads: Value,
        leaf: str = "",
        shape: tuple[int, ...] = IMAGE,
        lost: bool = False,
        **facts: object,
    ) -> Value:
        """Return what a call of a function makes."""
        block, made = self._block, self._new()
        number, call = self._numbers[block][function], self._calls[block][leaf, function]
        self._numbers[block][function] += 1
        self._calls[block][leaf, function] += 1
        site = CallSite(block, function, number, leaf, call)
        self.operations.append(Operation(site, reads, (made,), (shape,), facts, lost))
        return made

    def conv(self, value: Value, name: str) -> Value:
        """Return what a convolution makes."""
        self.layers.append(name)
        return self("conv2d", value, leaf=name)

    def linear(self, value: Value, name: str) -> Value:
        """Return what a linear layer makes."""
        self.layers.append(name)
        return self("linear", value, leaf=name, shape=(1, 4))

    def norm(self, value: Value, name: str) -> Value:
        """Return what a batch norm makes that is folded."""
        self.norms.append(name)
        return self("batch_norm", value, leaf=name)

    def relu(self, value: Value) -> Value:
        """Return what a ReLU makes."""
        return self("relu", value)

    def graph(self, *outputs: Value) -> ValueGraph:
        """Return the graph of the pass."""
        return ValueGraph(tuple(self.operations), tuple(self.inputs), outputs)

    def _new(self) -> Value:
        self._values += 1
        return self._values - 1


def placed(
    made: Pass,
    *outputs: Value,
    overrides: Sequence[Mapping[str, object]] = (),
    channel_norms: Sequence[str] = (),
    **activations: object,
) -> Placement:
    """Return the placement in a network of 4 bits, with 8 where operators join values."""
    section = {
        "weights": {"bits": 4},
        "activations": {"bits": 4, "place": "every_value"} | activations,
        "overrides": list(overrides),
    }
    given = check(Quantization, section, "q")
    settings = given.with_range(TRAINED)
    layers = wants_of(settings, made.layers, given)
    return place(made.graph(*outputs), settings, layers, made.norms, channel_norms)

"""A graph of values as its call sites see it: what a quantizer stands behind, and who reads it.

A chain is a function that makes a value and what alone reads it on the way to where the quantizer
stands: a norm that is folded, a ReLU or clip from 0, for a layer also a hardsigmoid. Its last call
is its end. Everything goes by written sites; a site of a block that is called several times has
several operations, and is part of a chain only if it is so in all of them.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.functions import LAYERS, passes_on
from qtool.graph.sites.value_graph import Operation, ValueGraph
from qtool.graph.values import Value
from qtool.quantizers.places.wanted import LayerWants

RECTIFIERS = ("relu", "clip")
# what may have a ReLU's work done by the quantizer behind it: kernels that saturate at 0
RECTIFIABLE = ("add", "mul", "avg_pool", "batch_norm", *LAYERS)


def input_site(number: int) -> CallSite:
    """Return the site of one of the tensors that the model is given."""
    return CallSite("", "input", number)


def is_passed_on(operation: Operation) -> bool:
    """Tell whether what an operation makes lies on the grid of what it reads."""
    if operation.function == "avg_pool":  # one pixel may be more in images of another size
        return operation.facts.get("same") is True and not is_global_pool(operation)
    if operation.function == "add" and operation.facts.get("value") == 0:
        return len(operation.reads) == 1  # 0 + x, as sum() begins, and branches that are none
    return passes_on(operation.function, operation.facts)


def is_global_pool(operation: Operation) -> bool:
    """Tell whether an average pooling makes one pixel of images of any size."""
    output = operation.facts.get("output")
    return operation.function == "avg_pool" and isinstance(output, tuple) and set(output) == {1}


def is_rectifier(operation: Operation) -> bool:
    """Tell whether an operation is a ReLU or a clip from 0."""
    return operation.function == "relu" or (
        operation.function == "clip" and operation.facts.get("low") == 0
    )


def top_of(operation: Operation) -> float | None:
    """Return where a clip ends; None for a ReLU."""
    high = operation.facts.get("high") if operation.function == "clip" else None
    return float(high) if isinstance(high, int | float) else None


class Readers(NamedTuple):
    """Who reads what a site makes, also through operators that pass it on.

    Attributes:
        calls: the operations, in the order of the pass, each as often as it reads.
        returned: whether the model returns the value, among others or alone.
    """

    calls: list[Operation]
    returned: bool


class Chains:
    """The chains of one graph, of layers with quantized weights and of norms that can be folded.

    Attributes:
        calls: written site -> its operations, in the order of the pass.
        sites: written site -> the site; inputs of the model come first.
        head: site of a chain -> the site that the chain begins at.
        chain: site that a chain begins at -> all its sites; operators that pass values on have
            none.
    """

    def __init__(
        self,
        graph: ValueGraph,
        layers: Mapping[str, LayerWants],
        foldable_norms: Collection[str],
    ) -> None:
        self.graph = graph
        self._layers, self._norms = layers, foldable_norms
        self.calls: dict[str, list[Operation]] = {}
        for operation in graph.operations:
            self.calls.setdefault(str(operation.site), []).append(operation)
        inputs = [input_site(number) for number in range(len(graph.inputs))]
        self.sites = {str(site): site for site in inputs}
        self.sites |= {name: calls[0].site for name, calls in self.calls.items()}
        numbered = reversed(
            [*zip(inputs, graph.inputs, strict=True)]
        )  # a value given twice: the first
        self._inputs = {value: str(site) for site, value in numbered}
        self.chain = self._consistent_chains()
        self.head = {site: head for head, chain in self.chain.items() for site in chain}

    @cached_property
    def layer_sites(self) -> dict[str, list[str]]:
        """Return layer with a quantized weight -> the sites of its calls."""
        found: dict[str, list[str]] = {}
        for name, calls in self.calls.items():
            layer = self.layer_of(calls[0])
            if layer is not None and self._layers[layer].weights:
                found.setdefault(layer, []).append(name)
        return found

    def layer_of(self, operation: Operation) -> str | None:
        """Return the layer, of those that are not float, whose work an operation is.

        A function that is given a layer's weight, as attention does it, works for that layer.
        """
        if operation.function not in LAYERS:
            return None
        owner = str(operation.facts.get("weight", "")).removesuffix(".weight")
        return next((n for n in (operation.site.leaf, owner) if n in self._layers), None)

    def is_layer(self, operation: Operation) -> bool:
        """Tell whether an operation is that of a layer with a quantized weight."""
        layer = self.layer_of(operation)
        return layer is not None and self._layers[layer].weights

    def is_norm(self, operation: Operation) -> bool:
        """Tell whether an operation is one of a norm that is folded into the layer before it."""
        leaf = operation.site.leaf
        return bool(leaf) and leaf in self._norms

    def end(self, site: str) -> str:
        """Return the last site of the chain that a site is in."""
        return self.chain[self.head[site]][-1]

    def of(self, end: str) -> tuple[str, ...]:
        """Return the chain that ends at a site; the site itself for an input of the model."""
        return self.chain[self.head[end]] if end in self.calls else (end,)

    def first(self, site: str) -> Operation:
        """Return the first operation of a site."""
        return self.calls[site][0]

    def source(self, value: Value) -> str | None:
        """Return the site that made a value, also through operators that passed it on.

        Returns:
            None for what no operation made and the model was not given, such as a parameter.
        """
        while (maker := self.graph.makers.get(value)) is not None:
            if not is_passed_on(maker):
                return str(maker.site)
            if not maker.reads:
                return None
            value = maker.reads[0]
        return self._inputs.get(value)

    def sources(self, site: str) -> list[tuple[str | None, ...]]:
        """Return for each call of a site the sites that made its operands."""
        return [tuple(map(self.source, call.reads)) for call in self.calls[site]]

    @cached_property
    def ends(self) -> list[str]:
        """Return the sites behind which quantizers may stand: inputs, then in the pass's order."""
        last = {chain[-1] for chain in self.chain.values()}
        return [name for name in self.sites if name in last or name not in self.calls]

    def readers(self, site: str) -> Readers:
        """Return who reads what a site makes, in any of its calls."""
        return self._readers[site]

    @cached_property
    def _readers(self) -> dict[str, Readers]:
        values: dict[str, list[Value]] = {site: [] for site in self.ends}
        for value, site in self._inputs.items():
            values[site].append(value)
        for site in self.ends:
            values[site] += [value for call in self.calls.get(site, []) for value in call.makes]
        return {site: self._readers_of(made) for site, made in values.items()}

    def _readers_of(self, values: list[Value]) -> Readers:
        found: list[Operation] = []
        returned, waiting, outputs = False, list(values), set(self.graph.outputs)
        while waiting:
            value = waiting.pop(0)
            returned |= value in outputs
            for reader in self.graph.readers.get(value, []):
                if is_passed_on(reader):
                    waiting += reader.makes
                else:
                    found += [reader] * reader.reads.count(value)
        return Readers(found, returned)

    def _consistent_chains(self) -> dict[str, tuple[str, ...]]:
        """Return the chains whose sites are in the same one in all their calls."""
        apart: set[str] = set()
        while True:
            chains = list(self._chains(apart))
            known = {chain[0]: chain for chain in chains}
            heads: dict[str, str] = {}
            wrong: set[str] = set()
            for first, *rest in chains:
                wrong.update(set(known[first][1:]) ^ set(rest))
                wrong.update(site for site in rest if heads.setdefault(site, first) != first)
            wrong.update(site for site in heads if site in known)
            if not wrong:
                return known
            apart |= wrong

    def _chains(self, apart: Collection[str]) -> Iterator[tuple[str, ...]]:
        """Yield the chain of each operation that begins one; sites that stay apart do so, too."""
        inside: set[Value] = set()  # what the operations make that are in a chain already
        for operation in self.graph.operations:
            if is_passed_on(operation) or inside.intersection(operation.makes):
                continue
            chain = [operation]
            while (then := self._only_reader(chain[-1])) is not None:
                if str(then.site) in apart or not self._absorbs(chain, then):
                    break
                chain.append(then)
                inside.update(then.makes)
            yield tuple(str(call.site) for call in chain)

    def _only_reader(self, operation: Operation) -> Operation | None:
        """Return the one call that reads what an operation makes; None where there are others."""
        if operation.lost or len(operation.makes) != 1 or operation.makes[0] in self.graph.outputs:
            return None
        readers = self.graph.readers.get(operation.makes[0], [])
        if len(readers) != 1 or readers[0].reads.count(operation.makes[0]) != 1:
            return None
        return readers[0]

    def _absorbs(self, chain: list[Operation], then: Operation) -> bool:
        """Tell whether the next operation has nothing left to do behind a quantizer."""
        head = chain[0]
        if then.lost or any(not self.is_norm(call) for call in chain[1:]):
            return False
        if self.is_norm(then):
            return self.is_layer(head)
        if then.function == "hardsigmoid":
            layer = self.layer_of(head) if self.is_layer(head) else None
            return layer is not None and len(self.layer_sites[layer]) == 1
        may = self.is_layer(head) if head.function in LAYERS else head.function in RECTIFIABLE
        return is_rectifier(then) and may

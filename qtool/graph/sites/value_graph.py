"""The graph of values of one pass: what every function read and made, by whose call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from qtool.graph.sites.call_sites import CallSite
from qtool.graph.values import Value

Counts = Mapping[tuple[str, str], int]  # (leaf, function) -> calls in one call of a block


@dataclass(frozen=True)
class Operation:
    """A call of a function that made tensors.

    Attributes:
        site: where it stands; its function is "other" where qtool knows no such function.
        reads: its tensor operands in the order of the arguments, as often as they are given;
            parameters, buffers and numbers are not among them.
        makes: the tensors that it returned.
        shapes: of what it makes, in the same order.
        facts: what its other arguments say: `low`, `high` of clip; those of pooling, see
            `qtool.graph.sites.facts`; `dim` of cat; `constants`, the number of operands that are
            parameters, buffers or numbers, of add, sub, mul, div and cat, and `value` where one is
            a number; `weight`, the name of the parameter, of conv2d, linear and batch_norm; `mode`
            and `value` of pad; `mode` of interpolate; `name` of other.
        lost: the caller goes on with the tensor that was written to in place, not with the one that
            was returned, so that nothing can be put in its place.
        in_place: it wrote to a value of the pass.
    """

    site: CallSite
    reads: tuple[Value, ...]
    makes: tuple[Value, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    lost: bool = False
    in_place: bool = False

    @property
    def function(self) -> str:
        """Return the name of its function."""
        return self.site.function


@dataclass(frozen=True)
class ValueGraph:
    """The operations of one pass, in the order of their calls.

    A block that is called several times contributes operations with equal sites.

    Attributes:
        inputs, outputs: the tensors that the model was given and returned, in order.
        counts: block -> what one of its calls may count; one entry for each way that was recorded.
        training: whether the pass was one of training mode.
    """

    operations: tuple[Operation, ...] = ()
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    counts: Mapping[str, tuple[Counts, ...]] = field(default_factory=dict)
    training: bool = False

    @cached_property
    def makers(self) -> dict[Value, Operation]:
        """Return value -> the operation that made it."""
        return {value: operation for operation in self.operations for value in operation.makes}

    @cached_property
    def readers(self) -> dict[Value, list[Operation]]:
        """Return value -> the operations that read it, each once."""
        found: dict[Value, list[Operation]] = {}
        for operation in self.operations:
            for value in dict.fromkeys(operation.reads):
                found.setdefault(value, []).append(operation)
        return found

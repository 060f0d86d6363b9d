"""What one real forward pass of a model told, and the questions that it answers.

A recording is a list of calls: of the modules that were watched, and of functions. Each says what
it read and what it made. A value is what one call made, or what the pass was given; values are
numbers, in the order in which they came up. A call that returns a tensor it was given, or writes to
one or to a part of it, makes a new value: who reads that tensor later reads the new one.

What happens inside a layer or ReLU is its own affair: it reads its arguments and makes its output.
Functions inside are noted only where they read a value of the pass, and make none. A norm hides
nothing: it makes what the last function inside it made.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from qtool.graph.inputs import Inputs
from qtool.graph.module_sites import Site
from qtool.graph.values import Value

Role = Literal["layer", "norm", "relu"]
Reason = Literal[
    "",
    "CALLED_OFTEN",
    "READS_MORE",
    "READ_BY_OTHERS",
    "STATISTICS_OF_INPUT",
    "OTHER_AXIS",
    "NOT_AFFINE",
    "BEHIND_NO_LAYER",
    "NORM_UNCALLED",
    "NORM_FUNCTION",
    "NORM_READ",
    "FLOAT_LAYER",
]


@dataclass(frozen=True)
class Call:
    """What a call read and made.

    Attributes:
        subject: the value of its first argument, where that is a tensor: what a method is called
            on, or a module's input.
        read: every tensor among its arguments, as often as it is given.
        made: every tensor that it returned, or that it wrote to.
    """

    subject: Value | None
    read: tuple[Value, ...]
    made: tuple[Value, ...]


@dataclass(frozen=True)
class ModuleCall(Call):
    """A call of a watched module.

    Attributes:
        site: the module and its call.
        role: as what it was watched; every module that may be one is watched as a norm.
        shape: of what it returned first.
        inside: the call of a watched module that it is a part of.
    """

    site: Site
    role: Role
    shape: tuple[int, ...] = ()
    inside: Site | None = None


@dataclass(frozen=True)
class FunctionCall(Call):
    """A call of a function, method or operator that returned tensors, or nothing.

    Attributes:
        name: of the function, such as add_ or __setitem__.
        inside: the call of a watched module that it is a part of.
    """

    name: str
    inside: Site | None = None


@dataclass(frozen=True)
class Norm:
    """A norm, and the layer whose output it reads.

    Attributes:
        name: of the module; FUNCTION after LAYER where a function normalizes.
        layer: "" where what it reads is not the output of a layer (or of the model itself).
        reason: why it cannot be folded into the layer, as one of the known limits, else "".
        words: what the reason speaks of.
        shape: of what it reads.
        axis: of the layer's channels, counted from the end.
    """

    name: str
    layer: str
    reason: Reason = ""
    words: Mapping[str, object] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    axis: int = -1


@dataclass(frozen=True)
class Recording:
    """The calls of one pass, in the order in which they ended; empty before there was one.

    Attributes:
        weights: layer -> its weight, a value that was there before the pass. Layers that share
            a parameter share the value.
        inputs, outputs: every tensor that the model was given and returned.
        example: the inputs of the pass, their first 32 rows.
        training: whether the model was in training mode.
        may_be_norms: names of the modules that were watched as norms.
        norms: what is known of them, once the pass is over.
    """

    calls_in_order: tuple[Call, ...] = ()
    weights: Mapping[str, Value] = field(default_factory=dict)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    example: Inputs | None = None
    training: bool = False
    may_be_norms: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ()

    @property
    def calls(self) -> Counter[str]:
        """Return how often each layer was called."""
        return self.calls_of("layer")

    def calls_of(self, role: Role) -> Counter[str]:
        """Return how often each module that was watched as `role` was called."""
        return Counter(call.site.module for call in self.module_calls if call.role == role)

    @cached_property
    def module_calls(self) -> list[ModuleCall]:
        """Return the calls of watched modules."""
        return [call for call in self.calls_in_order if isinstance(call, ModuleCall)]

    @cached_property
    def function_calls(self) -> list[FunctionCall]:
        """Return the calls of functions, also of those inside watched modules."""
        return [call for call in self.calls_in_order if isinstance(call, FunctionCall)]

    @cached_property
    def producers(self) -> dict[Value, Call]:
        """Return value -> the call that made it; what the pass was given is not among them."""
        return {value: call for call in self.calls_in_order for value in call.made}

    @cached_property
    def readers(self) -> dict[Value, list[Call]]:
        """Return value -> the calls that read it, functions inside watched modules left out."""
        found: dict[Value, list[Call]] = {}
        for call in self.calls_in_order:
            if not isinstance(call, FunctionCall) or call.inside is None:
                for value in dict.fromkeys(call.read):
                    found.setdefault(value, []).append(call)
        return found

    @property
    def batch_norms(self) -> dict[str, str]:
        """Return layer -> the norm that can be folded into it."""
        return {norm.layer: norm.name for norm in self.norms if not norm.reason}

    def sites_around(self, call: Call) -> Iterator[Site]:
        """Yield the calls of watched modules that a call is a part of, the innermost first."""
        site = call.inside if isinstance(call, ModuleCall | FunctionCall) else None
        while site is not None:
            yield site
            site = self._around.get(site)

    @cached_property
    def _around(self) -> dict[Site, Site | None]:
        return {call.site: call.inside for call in self.module_calls}

    @cached_property
    def feeds(self) -> dict[str, set[str]]:
        """Return layer -> the layers that take its output, with no other layer between them."""
        found: dict[str, set[str]] = {}
        origins: dict[Value, frozenset[str]] = {}  # the layers that a value was computed from
        for call in self.calls_in_order:
            made_of = frozenset[str]().union(*(origins[v] for v in call.read if v in origins))
            if isinstance(call, ModuleCall) and call.role == "layer":
                for source in made_of:
                    found.setdefault(source, set()).add(call.site.module)
                made_of = frozenset([call.site.module])
            origins |= dict.fromkeys(call.made, made_of)
        return found

    @property
    def may_read_constants(self) -> set[str]:
        """Return the layers of which no call reads what is known to be made of the inputs."""
        made, found = set(self.inputs), dict[str, bool]()
        for call in self.calls_in_order:
            of_inputs = not made.isdisjoint(call.read)
            if isinstance(call, ModuleCall) and call.role == "layer":
                found[call.site.module] = found.get(call.site.module, False) or of_inputs
            if of_inputs:
                made.update(call.made)
        return {name for name, of_inputs in found.items() if not of_inputs}

    @property
    def bypassed(self) -> set[str]:
        """Return the layers whose weight was used although they were not called."""
        called = self.calls
        return {n for n, weight in self.weights.items() if self._uses[weight] and not called[n]}

    def places(self, through: Collection[str]) -> dict[str, Site]:
        """Return layer -> the call of a ReLU whose output it takes, for layers called once.

        Args:
            through: names of functions behind which a value still is the ReLU's output.
        """
        found: dict[str, list[Site | None]] = {}
        made_by: dict[Value, Site] = {}
        for call in self.calls_in_order:
            site = None if call.subject is None else made_by.get(call.subject)
            if isinstance(call, ModuleCall) and call.role == "layer":
                found.setdefault(call.site.module, []).append(site)
            elif isinstance(call, ModuleCall) and call.role == "relu":
                made_by |= dict.fromkeys(call.made, call.site)
            elif site is not None and _passes_on(call, through):
                made_by[call.made[0]] = site
        once = {name: sites[0] for name, sites in found.items() if len(sites) == 1}
        return {name: site for name, site in once.items() if site is not None}

    @cached_property
    def _uses(self) -> Counter[Value]:
        """Return how often each value is read by any function, or returned by the model."""
        read = Counter(value for call in self.function_calls for value in call.read)
        return read + Counter(self.outputs)


def _passes_on(call: Call, through: Collection[str]) -> bool:
    """Tell whether a call is of one of these functions, and made one tensor of its subject."""
    return isinstance(call, FunctionCall) and call.name in through and len(call.made) == 1

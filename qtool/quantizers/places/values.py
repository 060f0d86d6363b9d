"""Which values get a quantizer, and of what kind: by who makes them and who reads them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qtool.graph.sites.functions import CONVOLUTIONS
from qtool.graph.sites.value_graph import Operation
from qtool.limits import FIXED_GRID
from qtool.quantizers.places.chains import Chains, is_rectifier, top_of
from qtool.quantizers.places.integers import Integers
from qtool.quantizers.places.placement import Form, PlacedSite, Use
from qtool.quantizers.places.wanted import FINE, ValueWants, Wanted

# what reads 8 bits, if not more: what it makes depends on small differences
_READS_FINE = ("sigmoid", "hardsigmoid", "silu", "hardswish", "batch_norm")
_FIXED: Mapping[Form, Mapping[str, object]] = {"unit": {"grid": "unsigned"}, "hardswish": {}}


@dataclass(frozen=True)
class ValueReaders:
    """Who reads one value.

    Attributes:
        layers: those that want a quantizer where it is made.
        own: layers that have a quantizer of their own.
        joins: sites of operators that compute in integers.
        others: whether anything else reads it, or the model returns it.
    """

    layers: tuple[str, ...]
    own: tuple[str, ...]
    joins: tuple[Operation, ...]
    others: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Return layers, and sites of joins."""
        joins = dict.fromkeys(str(call.site) for call in self.joins)
        return (*self.layers, *self.own, *joins)


class SitedValues:
    """The values of a network that get a quantizer.

    Attributes:
        placed: site -> its quantizer, in the order of the pass; all groups are of one yet.
        wants: site -> what is wanted there.
        read: layer -> the one site whose value it reads; layers with a quantizer of their own are
            not among them.
    """

    def __init__(self, chains: Chains, integers: Integers, wanted: Wanted) -> None:
        self._chains, self._integers, self._wanted = chains, integers, wanted
        self.read = dict(self._layers_at_values())
        self._positive: set[str] = set()
        self.placed: dict[str, PlacedSite] = {}
        self.wants: dict[str, ValueWants] = {}
        for end in chains.ends:
            if self._is_positive(end):
                self._positive.add(end)
            readers = self.readers(end)
            if self._is_demanded(end, readers):
                self.placed[end], self.wants[end] = self._placed(end, readers)

    def readers(self, end: str) -> ValueReaders:
        """Return who reads what a site makes."""
        calls, others = self._chains.readers(end)
        layers, own, joins = dict[str, None](), dict[str, None](), list[Operation]()
        for call in calls:
            layer = self._chains.layer_of(call)
            if str(call.site) in self._integers.joins:
                joins.append(call)
            elif layer is not None and self.read.get(layer) == end:
                layers[layer] = None
            elif layer is not None and self._wanted.layers[layer].inputs is not None:
                own[layer] = None
            else:
                others = True
        return ValueReaders(tuple(layers), tuple(own), tuple(joins), others)

    def is_positive(self, end: str) -> bool:
        """Tell whether a value is never below 0."""
        return end in self._positive

    def _layers_at_values(self) -> Iterator[tuple[str, str]]:
        """Yield layers that want a quantizer where their input is made, and that place."""
        sources: dict[str, set[str | None]] = {}
        for site, calls in self._chains.calls.items():
            if (layer := self._chains.layer_of(calls[0])) is not None:
                sources.setdefault(layer, set()).update(s[0] for s in self._chains.sources(site))
        for layer, places in sources.items():
            (source, *others) = places
            if source is None or others or not self._integers.may_stand(source):
                continue
            if self._wanted.layers[layer].at_value is not None:
                yield layer, source

    def _is_demanded(self, end: str, readers: ValueReaders) -> bool:
        if not self._integers.may_stand(end):
            return False
        if readers.layers or readers.joins:
            return True
        if end not in self._chains.calls:
            return False
        head = self._chains.first(self._chains.head[end])
        if head.function in CONVOLUTIONS and self._integers.is_integer_layer(head):
            calls, returned = self._chains.readers(end)
            return bool(calls) and (bool(readers.own) or not returned)
        return str(head.site) in self._integers.joins

    def _placed(self, end: str, readers: ValueReaders) -> tuple[PlacedSite, ValueWants]:
        """Return the quantizer of a value that gets one."""
        chain, form = self._chains.of(end), self._form(end, readers)
        fine = form in _FIXED or any(call.function in _READS_FINE for call in readers.joins)
        use, positive = self._use(end, form, readers), self.is_positive(end)
        names = [end, *chain[:-1]]
        wants = self._wanted.value(names, use, readers.layers, fine=fine, positive=positive)
        if form in _FIXED:
            if wants.settings.bits != FINE:
                raise FIXED_GRID.error(site=end, where=wants.where, bits=wants.settings.bits)
            settings = wants.settings.model_copy(update=dict(_FIXED[form]))
        elif form == "rectified":
            settings = wants.settings.model_copy(update={"grid": "unsigned"})
        else:
            settings = wants.settings
        wants = replace(wants, settings=settings)
        site = self._chains.sites[end]
        maker = None if end not in self._chains.calls else self._chains.sites[chain[0]]
        top = top_of(self._chains.first(end)) if form == "rectified" else None
        made = PlacedSite(
            site, maker, settings, form, top, use, readers.names, site, wants.where, wants.note
        )
        return made, wants

    def _form(self, end: str, readers: ValueReaders) -> Form:
        if end in self._chains.calls:
            call, head = self._chains.first(end), self._chains.head[end]
            if is_rectifier(call):
                return "rectified"
            made_by_gate = head in self._integers.joins or head != end
            if call.function in ("sigmoid", "hardsigmoid") and made_by_gate:
                return "unit"
        fixed = any(call.function == "hardswish" for call in readers.joins)
        return "hardswish" if fixed else "free"

    def _use(self, end: str, form: Form, readers: ValueReaders) -> Use:
        if end not in self._chains.calls:
            return "image"
        shares = self._chains.first(end).function == "cat" and end in self._integers.joins
        alone = readers.layers and not (readers.own or readers.joins or readers.others)
        return "layers" if alone and not shares and form not in _FIXED else "join"

    def _is_positive(self, end: str) -> bool:
        """Tell whether a value is never below 0, given that of all before it in the pass."""
        if end not in self._chains.calls:
            return False
        call = self._chains.first(end)
        if is_rectifier(call) or call.function in ("sigmoid", "hardsigmoid", "softmax"):
            return True
        if call.function not in ("add", "mul", "cat", "avg_pool") or call.facts.get("constants"):
            return False
        sources = {source for one in self._chains.sources(end) for source in one}
        return sources <= self._positive

"""Which operators compute in integers: the greatest set that feeds itself.

An addition, product, concatenation, pooling, gate, or norm that cannot be folded computes in
integers while every operand carries a quantizer, and something in integers reads its result. To
begin with all may; those that do not hold are taken out until all the others do.
"""

from collections.abc import Callable, Collection, Mapping

from qtool import limits
from qtool.graph.sites.functions import LAYERS
from qtool.graph.sites.value_graph import Operation
from qtool.limit import Limit
from qtool.quantizers.places.chains import RECTIFIERS, Chains, is_global_pool, is_rectifier
from qtool.quantizers.places.placement import JoinKind
from qtool.quantizers.places.wanted import Wanted

JOINS: dict[str, JoinKind] = {
    "add": "add",
    "mul": "mul",
    "cat": "cat",
    "avg_pool": "depthwise",
    "batch_norm": "depthwise",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hardsigmoid",
    "silu": "silu",
    "hardswish": "hardswish",
    "relu": "requantize",
    "clip": "requantize",
}
# what makes values that a hardswish may give its grid; a ReLU before it leaves nothing below 0
_BOUNDS = ("relu", "clip", "hardsigmoid")
_GIVES_A_GRID = ("add", "mul", "avg_pool", "batch_norm", *LAYERS)
Reason = tuple[Limit, Mapping[str, object]]
_Question = Callable[[str], Reason | None]


class Integers:
    """The operators of a network that compute in integers.

    Attributes:
        joins: the sites of those that are no layers, in the order of the pass.
        reasons: sites of the other operators that might -> why they do not.
        values_left: ends of chains that the recipe, or the model's own code, leaves without a
            quantizer -> why.
    """

    def __init__(self, chains: Chains, wanted: Wanted, channel_norms: Collection[str]) -> None:
        self._chains, self._wanted, self._channel_norms = chains, wanted, channel_norms
        self.values_left = {s: why for s in chains.ends if (why := self._why_left(s)) is not None}
        self.joins = [head for head in chains.chain if self._kind(head) is not None]
        self.reasons: dict[str, Reason] = {}
        self._keep(self._why_never)
        while self._keep(self._why_not) or self._keep(self._why_unread):
            pass

    def kind(self, join: str) -> JoinKind:
        """Return how a join computes."""
        kind = self._kind(join)
        assert kind is not None
        return kind

    def carries(self, site: str) -> bool:
        """Tell whether the value that a site makes comes with a quantizer of its own."""
        if not self.may_stand(site):
            return False
        if site not in self._chains.calls:
            return True  # an input of the model
        head = self._chains.head[site]
        return head in self.joins or self.is_integer_layer(self._chains.first(head))

    def may_stand(self, site: str) -> bool:
        """Tell whether a quantizer may stand behind a site."""
        calls = self._chains.calls.get(site)
        known = calls is None or calls[0].function != "other"
        return known and site not in self.values_left

    def reads(self, call: Operation) -> bool:
        """Tell whether an operation takes what it reads as integers."""
        return str(call.site) in self.joins or self.is_integer_layer(call)

    def is_integer_layer(self, call: Operation) -> bool:
        """Tell whether an operation is that of a layer which computes in integers."""
        layer = self._chains.layer_of(call)
        return layer is not None and self._wanted.layers[layer].is_integer

    def _keep(self, why: _Question) -> bool:
        """Take out the joins for which there is a reason; tell whether there were any.

        One goes after the other, so that a reason names the first cause of several.
        """
        before = len(self.joins)
        sites = self.joins[::-1] if why == self._why_unread else list(self.joins)
        for site in sites:
            if (reason := why(site)) is not None:
                self.joins.remove(site)
                self.reasons[site] = reason
        return len(self.joins) < before

    def _kind(self, head: str) -> JoinKind | None:
        call = self._chains.first(head)
        if self._chains.is_norm(call) or (call.function in RECTIFIERS and not is_rectifier(call)):
            return None
        if is_global_pool(call):
            return "global_pool"
        return JOINS.get(call.function)

    def _why_left(self, end: str) -> Reason | None:
        """Return why no quantizer stands behind a site, where one could."""
        if where := self._wanted.left_float([end, *self._chains.of(end)[:-1]]):
            return limits.JOIN_CHOSEN, {"where": where}
        lost = any(call.lost for call in self._chains.calls.get(end, []))
        return (limits.JOIN_LOST, {}) if lost else None

    def _why_never(self, join: str) -> Reason | None:
        """Return what of an operator itself keeps it from computing in integers."""
        if left := self.values_left.get(self._chains.end(join)):
            return left
        call = self._chains.first(join)
        operands = 2 if call.function in ("add", "mul") else len(call.reads)
        if call.facts.get("constants") or len(call.reads) != operands:
            return limits.JOIN_OF_CONSTANT, {}
        if call.function == "avg_pool":
            return _why_not_pooled(call)
        if call.function == "batch_norm":
            shapes = {len(shape) for one in self._chains.calls[join] for shape in one.shapes}
            if call.site.leaf not in self._channel_norms or len(shapes) != 1:
                return limits.NORM_OF_STATISTICS, {"norm": call.site.leaf or join}
        return None

    def _why_not(self, join: str) -> Reason | None:
        """Return which operand does not come with a quantizer."""
        sources = self._chains.sources(join)
        if len(set(sources)) > 1:
            return limits.JOIN_OF_DIFFERENT, {"block": self._chains.sites[join].block}
        for source in sources[0]:
            if source is None:
                return limits.JOIN_OF_CONSTANT, {}
            if not self.carries(source):
                return self._why_float(source)
        if self.kind(join) == "hardswish":
            for source in sources[0]:
                if source is not None and not self._gives_a_grid(source):
                    return limits.HARDSWISH_SHARED, {"site": source}
        return None

    def _why_float(self, source: str) -> Reason:
        call = self._chains.first(source) if source in self._chains.calls else None
        if call is not None and call.function == "other":
            return limits.JOIN_OF_UNNAMED, {"name": call.facts.get("name", "a function")}
        is_layer = call is not None and call.function in LAYERS and call.site.leaf
        return limits.JOIN_OF_FLOAT, {"operand": call.site.leaf if call and is_layer else source}

    def _gives_a_grid(self, source: str) -> bool:
        """Tell whether hardswishes alone read a value, whose grid they fix."""
        if source not in self._chains.calls or source != self._chains.end(source):
            return False
        made = self._chains.first(self._chains.head[source])
        if made.function not in _GIVES_A_GRID or self._chains.first(source).function in _BOUNDS:
            return False
        calls, returned = self._chains.readers(source)
        alone = all(c.function == "hardswish" and str(c.site) in self.joins for c in calls)
        return alone and not returned

    def _why_unread(self, join: str) -> Reason | None:
        calls, _ = self._chains.readers(self._chains.end(join))
        return None if any(self.reads(call) for call in calls) else (limits.JOIN_UNREAD, {})


def _why_not_pooled(call: Operation) -> Reason | None:
    """Return why an average pooling is no convolution with equal weights."""
    if call.facts.get("kernel") is None:
        return limits.POOL_UNEVEN, {}
    return (limits.POOL_DIVISOR, {}) if "divisor" in call.facts else None

"""What is decided for the values of a network: which get a quantizer, and what it is like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.functions import LAYERS
from qtool.settings.tensors import ActivationQuantization

# free: grid and range as the settings say. rectified: a ReLU or a clip from 0 is the quantizer's,
# so that what is below 0 becomes 0; unsigned, but for a member of a group that holds negative
# values, too, whose codes end at the zero point. hardswish: 8 bits, scale 3 / k and zero point k,
# k = round(255 * 3 / (hi + 3)), so that hardsigmoid of a code q is min(q, 2k) / 2k. unit: 8 bits,
# unsigned, scale 1 / 255, for what lies in 0..1.
Form = Literal["free", "rectified", "hardswish", "unit"]
# image: an input of the model. layers: read by layers alone. join: read by a join, or by float
# operators alone.
Use = Literal["image", "layers", "join"]
# How a join computes. depthwise: average pooling, or a norm that cannot be folded, as a convolution
# of each channel by itself. hardsigmoid: one that no layer before it absorbs; like sigmoid, each
# code by itself. requantize: a ReLU or clip that no maker absorbs, rounds what another site made.
JoinKind = Literal[
    "add",
    "mul",
    "cat",
    "global_pool",
    "depthwise",
    "sigmoid",
    "hardsigmoid",
    "silu",
    "hardswish",
    "requantize",
]


@dataclass(frozen=True)
class PlacedSite:
    """A quantizer of one value (or of one group of values).

    Attributes:
        site: where the quantizer stands: the call whose result it rounds. For `rectified` that is
            the ReLU or clip, whose argument it takes and whose work it does; hardsigmoid, for
            `unit`, computes first.
        maker: the call that computes the value: the site itself, or what comes before a norm, ReLU
            or clip that the quantizer stands behind. None for an input of the model.
        settings: bits, grid, range, estimator and rounding.
        form: what the grid has to be like.
        top: what a clip from 0 ends at; None for a ReLU and where there is none.
        use: who reads it, in one word.
        readers: names of the layers, and of the sites of joins, that read it.
        group: the site whose quantizer serves this one, too; the site itself where that is its own.
            Members have equal settings, but forms and tops of their own; where only some are
            rectified, the group's own quantizer is at one that is not.
        wants: whether what is asked for the value was a layer's or the site's: overrides.N or
            quantization, for messages and the plan.
        note: what of the recipe does not fit the value, and was taken otherwise; for the plan.
    """

    site: CallSite
    maker: CallSite | None
    settings: ActivationQuantization
    form: Form = "free"
    top: float | None = None
    use: Use = "layers"
    readers: tuple[str, ...] = ()
    group: CallSite | None = None
    wants: str = "quantization"
    note: str = ""


@dataclass(frozen=True)
class Join:
    """An operator that computes in integers: an addition, product, concatenation, pooling, gate.

    Attributes:
        site: of the call.
        kind: how it computes.
        inputs: the placed sites whose quantizers its operands carry, in order, as written. Those of
            a concatenation are of its output's group, but for what a sigmoid makes.
        output: the placed site whose quantizer stands behind it.
        norm: name of the module, where it is a norm that cannot be folded.
        facts: of the operation (kernel, stride, padding, dim).
    """

    site: CallSite
    kind: JoinKind
    inputs: tuple[str, ...]
    output: str
    norm: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """All decisions for one network; sites go by their written names.

    Attributes:
        sites: every placed quantizer, in the order of the pass.
        joins: operators that compute in integers, by site.
        layers: layer -> the site whose value it reads, also through operators that pass it on.
            A layer that is not among them, and is to have a quantized input, has its own quantizer.
        requantized: layers that round what they read again, to their own bits.
        outputs: layer -> the site that its output is quantized at; absent where that stays float.
        absorbed: norms (by module name), ReLUs and clips (by site) that a maker before them and a
            quantizer behind them leave nothing to do in integers -> the site of that quantizer.
        repeats: sites of operators that pass values on (pooling by maximum, flatten, ...) -> the
            site whose grid their results still lie on.
        float_joins: sites of joins that stay float -> why.
        advice: sites of joins that stay float -> what would change that, where anything does.
        without_quantizer: values left float by name -> why (results that are dropped, ...).
    """

    sites: Mapping[str, PlacedSite] = field(default_factory=dict)
    joins: Mapping[str, Join] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    requantized: frozenset[str] = frozenset()
    outputs: Mapping[str, str] = field(default_factory=dict)
    absorbed: Mapping[str, str] = field(default_factory=dict)
    repeats: Mapping[str, str] = field(default_factory=dict)
    float_joins: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)
    without_quantizer: Mapping[str, str] = field(default_factory=dict)

    def made_by(self, name: str) -> str:
        """Return what makes the value of a site, and what the quantizer behind it does, in words.

        Such as conv1 + bn1 + relu: a layer, a norm that is folded into it, a function.
        """
        site = self.sites[name]
        if site.maker is None:
            return "the model's input"
        is_layer = site.maker.function in LAYERS and site.maker.leaf
        parts = [site.maker.leaf if is_layer else site.maker.function]
        parts += [norm for norm, end in self.absorbed.items() if end == name and ":" not in norm]
        if site.site != site.maker and site.site.function != "batch_norm":
            parts.append(site.site.function)
        return " + ".join(parts)

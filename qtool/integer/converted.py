"""What `convert` knows about an integer model, kept on it and in its file."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from qtool.graph.rewritten import Rewritten
from qtool.graph.swap import Kept, kept_state
from qtool.integer.layers import LayerSpec
from qtool.integer.relu import ReluSpec
from qtool.integer.site_specs import SiteSpec
from qtool.reports.results import Proof


@dataclass
class Converted(Kept):
    """What `convert` knows about the model it returns, kept on it as `model.qtool`.

    Attributes:
        layers: one for each integer layer, in the model's order.
        relus: one for each quantized ReLU.
        left_float: name of every layer with weights that stays float -> why.
        notes: what a user should know, one line each.
        proof: how far it agrees with what it was made of; None in files that did not keep it.
        not_folded: name of every norm that stays beside the layers -> why.
        sites: one for each call site where something stands, in the order of the pass.
        float_sites: call site whose result, or what it could compute in integers, stays float ->
            why.
        rewritten: what of the network was changed so that it calls all of its layers.
    """

    maker: ClassVar[str] = "qtool.convert"
    model: ClassVar[str] = "an integer model"

    layers: list[LayerSpec] = field(default_factory=list)
    relus: list[ReluSpec] = field(default_factory=list)
    left_float: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    proof: Proof | None = None
    not_folded: dict[str, str] = field(default_factory=dict)
    sites: list[SiteSpec] = field(default_factory=list)
    float_sites: dict[str, str] = field(default_factory=dict)
    rewritten: Rewritten = field(default_factory=Rewritten)


def converted_state(model: nn.Module) -> Converted:
    """Return what `convert` left on the model.

    Raises:
        ValueError: If the model did not come from `convert`.
    """
    return kept_state(model, Converted)

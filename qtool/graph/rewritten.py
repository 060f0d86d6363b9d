"""What of a model was changed so that it calls all of its layers and norms: told, done again."""

from dataclasses import dataclass, field

from torch import nn

from qtool.graph.attention import layered, make_layered
from qtool.graph.by_function import call_layers, called_layers
from qtool.graph.own_norm import give_own_norms, own_norms


@dataclass(frozen=True)
class Rewritten:
    """Parts of a model that were changed so that they call layers and norms.

    Attributes:
        packed: attentions that project one tensor by one layer.
        apart: attentions that project three by three.
        by_function: block -> the layers in it whose weights it gave to F.linear.
        norms: modules that gave their own statistics to F.batch_norm.
    """

    packed: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    by_function: dict[str, list[str]] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)


def rewritten_in(model: nn.Module) -> Rewritten:
    """Return what of a model was changed."""
    packed, apart = layered(model)
    return Rewritten(packed, apart, called_layers(model), own_norms(model))


def rewrite(model: nn.Module, done: Rewritten) -> None:
    """Change a float model as another of the same network was, in place."""
    make_layered(model, done.packed, done.apart)
    call_layers(model, done.by_function)
    give_own_norms(model, done.norms)

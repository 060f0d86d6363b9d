"""What of a model was changed so that it calls all of its layers: told, and done again."""

from dataclasses import dataclass, field

from torch import nn

from qtool.graph.attention import layered, make_layered
from qtool.graph.by_function import call_layers, called_layers


@dataclass(frozen=True)
class Rewritten:
    """Parts of a model that were changed so that they call layers.

    Attributes:
        packed: attentions that project one tensor by one layer.
        apart: attentions that project three by three.
        by_function: block -> the layers in it whose weights it gave to F.linear.
    """

    packed: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    by_function: dict[str, list[str]] = field(default_factory=dict)


def rewritten_in(model: nn.Module) -> Rewritten:
    """Return what of a model was changed."""
    packed, apart = layered(model)
    return Rewritten(packed, apart, called_layers(model))


def rewrite(model: nn.Module, done: Rewritten) -> None:
    """Change a float model as another of the same network was, in place."""
    make_layered(model, done.packed, done.apart)
    call_layers(model, done.by_function)

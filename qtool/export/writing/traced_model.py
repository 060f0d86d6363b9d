"""An integer model as torch.onnx sees it, traced: standard operators where its layers were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from qtool.export.targets.target import Target
from qtool.export.writing.node_names import name_nodes
from qtool.export.writing.on_codes import keep_codes
from qtool.export.writing.qdq_joins import QdqDepthwise, mark_joins, pools_of, put_joins
from qtool.export.writing.qdq_modules import QdqLayer, QdqReLU
from qtool.export.writing.request import Writing
from qtool.export.writing.sizes import WINDOWS, WORDS, name_sizes
from qtool.export.writing.trace import Call, traced
from qtool.graph.copies import copy_of
from qtool.graph.swap import replace_module
from qtool.integer.converted import Converted, converted_state
from qtool.integer.layers import integer_layers
from qtool.integer.relu import integer_relus

RECTIFIERS = ("relu", "clip")  # functions that the ends of a grid do


@dataclass(frozen=True)
class TracedModel:
    """A traced model.

    Attributes:
        graph: with codes of weights as they are.
        joins: that have codes of their own, by site.
        notes: what of its inputs could not be left open.
    """

    graph: ir.Model
    joins: dict[str, QdqDepthwise]
    notes: list[str]


def traced_model(
    integer: nn.Module, example: object, writing: Writing, target: Target
) -> TracedModel:
    """Trace an integer model, which stays as it is.

    Raises:
        ExportError: If torch.onnx cannot express the model.
    """
    state = converted_state(integer)
    model = copy_of(integer).cpu().eval()
    any_size = writing.any_size and target.any_size
    call = Call(model, example, writing.batch or target.batch, any_size=any_size)
    pools = pools_of(model, call.inputs)
    if call.other.inputs is not None and pools_of(model, call.other.inputs) != pools:
        call.keep_size(WINDOWS)
    for name, layer in integer_layers(model).items():
        model = replace_module(model, name, QdqLayer(layer, writing.ceil))
    for name, relu in integer_relus(model).items():
        model = replace_module(model, name, QdqReLU(relu, writing.ceil))
    joins = put_joins(model, pools, writing.ceil)
    graph = traced(model, call, target.opset, target.ir_version)
    notes = [
        f"{name}: the batch is fixed, for the model's code computes with it as with a number"
        for name in call.closed(graph.graph)
    ]
    sizes = name_sizes(graph.graph, call.given)
    if writing.any_size:
        notes += _fixed_sizes(sizes, call.other.why or target.why_fixed)
    _mark(graph.graph, model, state)
    if state.sites and target.sums_bytes:
        keep_codes(graph.graph)
    return TracedModel(graph, joins, notes)


def _mark(graph: ir.Graph, model: nn.Module, state: Converted) -> None:
    """Name the operators of a graph after the layers and the numbered calls that they are of."""
    mark_joins(graph, [str(s.site) for s in state.sites if s.kind != "rounded"])
    # what is rounded behind a float function leaves that in the graph
    taken = [s.site for s in state.sites if s.kind != "rounded" or s.site.function in RECTIFIERS]
    name_nodes(graph, model, [spec.name for spec in state.layers], taken)


def _fixed_sizes(sizes: Mapping[str, Sequence[str]], why: str) -> list[str]:
    """Return a note for each input of images whose sizes are not all open.

    Args:
        sizes: which are, of each.
        why: they are not; "" where nothing spoke against it before the model was traced.
    """
    reason = why or "the model's code computes with it as with a number"
    closed = {name: [word for word in WORDS if word not in open_] for name, open_ in sizes.items()}
    if not sizes:
        return [f"height and width are not open: {reason}"]
    return [
        f"{name}: {' and '.join(words)} {'is' if len(words) == 1 else 'are'} fixed: {reason}"
        for name, words in closed.items()
        if words
    ]

"""What stays float by design: operators that no recipe could take into integers, nor should.

LayerNorm, Softmax, GELU and the products of attention are so, since integers bring no gain there
(measured: 0.572 of the float time with their sums in integers, 0.569 without, on ViT-B/16), and so
are sums and products with numbers and parameters, and transposed convolutions where the runtime has
no kernel on integers for them. Around them lie sums, moves and poolings that are
float because what they read is, or what reads them; these are float by design where no other float
operator has a part in it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx

from qtool.export.proof.islands import CONVOLUTIONS, LINEARS, VIEWS, RuntimeGraph
from qtool.limits import BY_FUNCTIONS, JOIN_OF_CONSTANT, JOIN_OF_FLOAT, JOIN_UNREAD

ALWAYS_FLOAT = (
    *("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"),
    *("Softmax", "LogSoftmax", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Erf"),
    *("Attention", "MultiHeadAttention", "GroupNormalization", "InstanceNormalization"),
)
FUNCTIONS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "softmax", "gelu")
"""Functions of `qtool.graph.sites.functions` whose every operator is float by design."""
NO_KERNEL = "the runtime has no kernel on integers for it"
AROUND = "as what lies around it is float"
NO_FORM = "qtool has no integer form of"
FOLLOWS = (JOIN_OF_FLOAT, JOIN_UNREAD, BY_FUNCTIONS)
"""Reasons that speak of what lies around, as `AROUND` does."""


def float_by_design(
    nodes: Sequence[onnx.NodeProto],
    names: Sequence[str],
    reasons: Sequence[str],
    graph: RuntimeGraph,
) -> list[str]:
    """Return for each float operator why it is so by design, "" where it is not.

    Args:
        nodes: that run in float between quantized ones.
        names: of the layer or call that each comes from.
        reasons: why each is float.
        graph: that they are of.
    """
    found = [_itself(*given, graph) for given in zip(nodes, names, reasons, strict=True)]
    follows = [
        not found[index]
        and node.op_type not in (*CONVOLUTIONS, *LINEARS)
        and (reason.endswith(AROUND) or any(limit.fits(reason) for limit in FOLLOWS))
        for index, (node, reason) in enumerate(zip(nodes, reasons, strict=True))
    ]
    touching = _touching(nodes, graph)
    for index, follower in enumerate(follows):
        if follower:
            causes = _causes(index, follows, touching)
            if causes and all(found[cause] for cause in causes):
                found[index] = "as what lies around it does"
    return found


def _itself(node: onnx.NodeProto, name: str, reason: str, graph: RuntimeGraph) -> str:
    """Return why an operator is float by design, whatever lies around it."""
    function = name.rpartition(":")[2].rstrip("0123456789")
    if node.op_type in LINEARS:
        values = graph.multiplies_values(node)
        return "for it multiplies values by values, as attention does" if values else ""
    if reason == NO_KERNEL:
        return f"for {reason}"
    if node.op_type in ALWAYS_FLOAT or (":" in name and function in FUNCTIONS):
        return "for integers bring no gain there"
    number = node.op_type in ("Div", "Sub") and len(graph.reads(node)) == 1
    if JOIN_OF_CONSTANT.fits(reason) or (number and reason.startswith(NO_FORM)):
        return f"for {JOIN_OF_CONSTANT.says}"
    return ""


def _touching(nodes: Sequence[onnx.NodeProto], graph: RuntimeGraph) -> Mapping[int, set[int]]:
    """Return operator -> those that it shares a value with, also through views."""
    same: dict[str, str] = {}  # what a view makes -> what it reads
    for node in graph.graph.node:
        if node.op_type in VIEWS and node.op_type != "Shape":
            read = node.input[0]
            same.update(dict.fromkeys(node.output, same.get(read, read)))
    at: dict[str, set[int]] = defaultdict(set)
    tensors = [
        {same.get(name, name) for name in (*graph.reads(node), *node.output)} for node in nodes
    ]
    for index, own in enumerate(tensors):
        for name in own:
            at[name].add(index)
    return {index: set().union(*(at[name] for name in own)) for index, own in enumerate(tensors)}


def _causes(start: int, follows: Sequence[bool], touching: Mapping[int, set[int]]) -> set[int]:
    """Return the operators that are no followers, as far as followers reach from one."""
    seen, waiting, causes = {start}, [start], set[int]()
    while waiting:
        for other in touching[waiting.pop()] - seen:
            seen.add(other)
            if follows[other]:
                waiting.append(other)
            else:
                causes.add(other)
    return causes

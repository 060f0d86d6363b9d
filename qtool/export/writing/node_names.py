"""Nodes named after the layer or the call that they come from: layer1.0.conv1/Conv.

What stands before the slash is a layer, the site of a quantizer, or a numbered call, as
`qtool.graph.sites.call_sites` writes it; behind it stands the operator. A runtime that joins nodes
keeps the name, or the output, of one of them, so that a time or a float operator in its graph can
be told to a place in the network.
"""

import re
from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir
from torch import nn

from qtool.export.writing.weights import LAYER
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.swapped_classes import class_of

SCOPES, MADE_FROM = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.fx_node"
_TARGET = re.compile(r"target=torch\.ops\.aten\.(\w+)")
# torch's own operators -> the function that a call site has them under
_FUNCTIONS = {
    "add": ("add", "add_", "sub", "sub_"),
    "mul": ("mul", "mul_"),
    "cat": ("cat",),
    "avg_pool": (
        *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)),
        "mean",
    ),
    "max_pool": tuple(f"max_pool{n}d{more}" for n in (1, 2, 3) for more in ("", "_with_indices")),
    "relu": ("relu", "relu_"),
    "clip": ("hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "relu6"),
    "batch_norm": ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm"),
    "layer_norm": ("layer_norm", "native_layer_norm"),
    "group_norm": ("group_norm", "native_group_norm"),
    "hardswish": ("hardswish", "hardswish_"),
    "hardsigmoid": ("hardsigmoid", "hardsigmoid_"),
    "silu": ("silu", "silu_"),
    "sigmoid": ("sigmoid", "sigmoid_"),
    "gelu": ("gelu",),
    "softmax": ("softmax", "_softmax"),
    "matmul": ("matmul", "bmm", "mm"),
    "attention": ("scaled_dot_product_attention",),
    "conv1d": ("conv1d",),
    "conv2d": ("conv2d", "convolution"),
    "conv3d": ("conv3d",),
    "conv_transpose1d": ("conv_transpose1d",),
    "conv_transpose2d": ("conv_transpose2d",),
    "conv_transpose3d": ("conv_transpose3d",),
    "linear": ("linear", "addmm"),
}
FUNCTION_OF = {name: function for function, names in _FUNCTIONS.items() for name in names}


def owner_of(name: str) -> str:
    """Return what a node's name says that it comes from; "" where it says nothing."""
    return name.partition("/")[0] if "/" in name else ""


def name_nodes(
    graph: ir.Graph, model: nn.Module, layers: Iterable[str], taken: Iterable[CallSite]
) -> None:
    """Name every node of a traced graph, whose marks and notes must still be there.

    Args:
        graph: changed in place; its tensors keep their names.
        model: that was traced.
        layers: names of integer layers, whatever stands in their place.
        taken: call sites where something of qtool's stands: a call of which nothing is left to be
            seen counts in the numbers of those behind it.
    """
    blocks = {name for name, module in model.named_modules() if _is_block(module)} | {""}
    numbers = _Numbers(blocks, set(layers), taken)
    used = Counter[str]()
    for node in graph:
        owner = numbers.layer(node) or node.metadata_props.get(LAYER)
        if owner is None:
            owner = numbers.owner(node)
        name = f"{owner or 'model'}/{node.op_type}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}.{used[name] - 1}"


def _is_block(module: nn.Module) -> bool:
    return class_of(module) is not nn.Sequential and any(True for _ in module.children())


class _Numbers:
    """Which layer or numbered call each node of a traced graph comes from."""

    def __init__(self, blocks: set[str], layers: set[str], taken: Iterable[CallSite]) -> None:
        self._blocks, self._layers = blocks, layers
        self._taken = {(site.block, site.function, site.number) for site in taken}
        self._next = Counter[tuple[str, str]]()
        self._known: dict[str, str] = {}

    def layer(self, node: ir.Node) -> str:
        """Return the integer layer whose work an operator of torch does, "" where it is none."""
        if _TARGET.search(node.metadata_props.get(MADE_FROM, "")) is None:
            return ""
        scopes = _scopes_of(node)[:-1]
        return next((name for name in reversed(scopes) if name in self._layers), "")

    def owner(self, node: ir.Node) -> str:
        """Return the layer, the call or else the module that a node comes from."""
        scopes = _scopes_of(node)
        if not scopes:
            return ""
        *modules, made_from = scopes  # of the operator of torch's graph, which may be many nodes
        if made_from not in self._known:
            self._known[made_from] = self._place(modules, node.metadata_props.get(MADE_FROM, ""))
        return self._known[made_from]

    def _place(self, modules: list[str], note: str) -> str:
        found = _TARGET.search(note)
        function = FUNCTION_OF.get(found[1]) if found else None
        if function is None:
            return modules[-1] if modules else ""
        block = next((name for name in reversed(modules) if name in self._blocks), "")
        number = self._next[block, function]
        while (block, function, number) in self._taken:
            number += 1
        self._next[block, function] = number + 1
        return f"{block}:{function}{number}"


def _scopes_of(node: ir.Node) -> list[str]:
    """Return the modules that a node stands in, from outside, and then torch's name of it."""
    found = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
    return [scope.removeprefix("model.").removeprefix("model") for scope in found]

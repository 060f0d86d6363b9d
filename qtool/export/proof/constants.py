"""Tensors of a file that depend on no input, as the runtime itself computes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
from onnx import helper

from qtool.export.targets.target import Array, Runtime
from qtool.export.writing.saved import loadable

PART = 2**28  # bytes of constants that are unpacked at once: 1 bit becomes an int32 on the way


def nodes_behind(nodes: Iterable[onnx.NodeProto], names: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that tensors are made by, directly or through others, in their order."""
    given = list(nodes)
    behind = _behind(_makers(given), names)
    return [node for node in given if id(node) in behind]


def codes_in(model: onnx.ModelProto, names: Sequence[str], runtime: Runtime) -> dict[str, Array]:
    """Return tensors of a model that depend on no input, as the runtime computes them.

    They are computed part by part, so that neither a message of protobuf nor memory has to hold
    all constants of a large model once more.

    Raises:
        InputError: If the runtime cannot load what makes them.
    """
    found: dict[str, Array] = {}
    for part in _parts(model.graph, names):
        with loadable(_alone(model, part)) as given:
            found |= zip(part, runtime.open(given).constants(part), strict=True)
    return found


def _alone(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a model of no input that makes some tensors of another."""
    graph = model.graph
    nodes = nodes_behind(graph.node, names)
    used = {name for node in nodes for name in node.input} | set(names)
    outputs = [onnx.ValueInfoProto(name=name) for name in names]  # int8, or uint8 around 128
    constants = [item for item in graph.initializer if item.name in used]
    constants.sort(key=lambda item: item.name)
    made = helper.make_model(
        helper.make_graph(nodes, "codes", [], outputs, constants),
        opset_imports=model.opset_import,
    )
    made.ir_version = model.ir_version
    return made


def _parts(graph: onnx.GraphProto, names: Sequence[str]) -> Iterator[list[str]]:
    """Yield names of tensors whose constants together are no more than a part, or one of more."""
    sizes = {item.name: len(item.raw_data) for item in graph.initializer}
    makers = _makers(graph.node)
    part, size = list[str](), 0
    for name in names:
        read = {name, *(r for node in _behind(makers, [name]).values() for r in node.input)}
        more = sum(sizes.get(constant, 0) for constant in read)
        if part and size + more > PART:
            yield part
            part, size = [], 0
        part.append(name)
        size += more
    if part:
        yield part


def _makers(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    return {out: node for node in nodes for out in node.output}


def _behind(
    makers: Mapping[str, onnx.NodeProto], names: Iterable[str]
) -> dict[int, onnx.NodeProto]:
    """Return the nodes that tensors are made by, directly or through others, by their ids."""
    waiting, seen = list(names), dict[int, onnx.NodeProto]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            waiting += node.input
    return seen

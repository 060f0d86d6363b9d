"""What is wrong with a model's quantization annotations."""

import onnx

from qtool.export.writing.annotation import (
    DATATYPE,
    SCALE,
    ZERO_POINT,
    read_annotations,
    read_metadata,
    tensor_names,
)


def lint(model: onnx.ModelProto) -> list[str]:
    """Return what is wrong with a model's annotations, one line each."""
    graph, problems = model.graph, []
    names = tensor_names(graph)
    seen: set[str] = set()
    for item in read_annotations(graph):
        if item.tensor in seen:
            problems.append(f"{item.tensor} is annotated twice")
        seen.add(item.tensor)
        if item.tensor not in names:
            problems.append(f"annotation of {item.tensor}: there is no such tensor")
        for key, name in ((SCALE, item.scale), (ZERO_POINT, item.zero_point)):
            if not name:
                problems.append(f"annotation of {item.tensor}: no {key}")
            elif name not in names:
                problems.append(f"annotation of {item.tensor}: {key} {name} is no tensor")
        if not item.datatype:
            problems.append(f"annotation of {item.tensor}: no {DATATYPE}")
    quantized = [node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    problems += [
        f"{name} is quantized, but not annotated"
        for name in quantized
        if not seen & _reached(graph, name)
    ]
    for layer in read_metadata(model).get("layers", []):
        tensor = layer.get("codes")
        if layer.get("weight_bits") and tensor and tensor not in seen:
            problems.append(f"{tensor} holds quantized weights, but is not annotated")
    return problems


def _reached(graph: onnx.GraphProto, name: str) -> set[str]:
    """Return a quantized tensor and what integer operators make of it."""
    reached = {name}
    for node in graph.node:
        if node.op_type in ("Clip", "Mul", "Add") and not reached.isdisjoint(node.input):
            reached.update(node.output)
    return reached

"""Integer model -> ONNX with QuantizeLinear / DequantizeLinear pairs and packed weights.

torch.onnx traces the model once, with standard quantization operators at every integer layer;
then each layer's weight is rewritten in the form that the target runs fastest.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from qtool.export.annotation import Annotation, write_annotations, write_metadata
from qtool.export.qdq_modules import Ceil, QdqLayer, QdqReLU
from qtool.export.targets.target import TARGETS
from qtool.export.trace import traced
from qtool.export.weights import WeightWriter, choose_forms, to_proto
from qtool.graph.swap import replace_module
from qtool.integer.layers import converted_state, integer_layers
from qtool.integer.relu import integer_relus


def export_onnx(
    integer: nn.Module,
    example: Tensor,
    path: Path | str,
    target: str = "onnxruntime",
    *,
    batch: int | None = None,
    annotate: bool = True,
    ceil: Ceil = "exact",
    metadata: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the integer model as an ONNX file.

    Args:
        integer: from `convert`.
        example: one batch of inputs [B, C, H, W]; only its shape matters.
        path: of the file to write.
        target: name in TARGETS.
        batch: fixed batch size; None leaves it dynamic.
        annotate: write quantization_annotation.
        ceil: how inputs with rounding ceil are written: `exact`, or `shifted` by half a step, which
            is faster and differs at and next to whole steps.
        metadata: goes into metadata_props beside each layer's bits.

    Returns:
        The description that went into metadata_props, with every layer and its bytes on disk.

    Raises:
        ExportError: If torch.onnx cannot express the model.
        RecipeError: If there is no such target.
    """
    state, chosen = converted_state(integer), TARGETS[target]()
    model = deepcopy(integer).cpu().eval()
    for name, layer in integer_layers(model).items():
        replace_module(model, name, QdqLayer(layer, ceil))
    for name, relu in integer_relus(model).items():
        replace_module(model, name, QdqReLU(relu, ceil))
    graph = traced(model, example.cpu(), chosen.opset, batch)
    writer = WeightWriter(graph, chosen)
    layers = [writer.write(spec) | spec.as_dict() for spec in state.layers]
    if chosen.optimized is not None:
        forms = choose_forms(to_proto(graph), layers, chosen)
        for spec, layer in zip(state.layers, layers, strict=True):
            layer["integer_kernel"] = spec.name in forms.integer
            if spec.name in forms.floating:
                writer.unpack_to_float(spec.name, len(spec.shape))
    writer.finish()
    annotations = [note for spec in state.layers for note in writer.annotations(spec)]
    for relu in state.relus:
        for index, call in enumerate(relu.calls):
            annotations += writer.input_annotation(f"{relu.name}:{index}", call.integers)
    proto = to_proto(graph)
    proto.producer_name = "qtool"
    if annotate:
        write_annotations(proto.graph, _distinct(annotations))
    described = {
        **(metadata or {}),
        "target": target,
        "ceil": ceil,
        "layers": layers,
        "table_bytes": writer.table_bytes,
        "left_float": state.left_float,
    }
    write_metadata(proto, described)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))
    return described


def _distinct(annotations: list[Annotation]) -> list[Annotation]:
    """Keep one annotation of each tensor: layers that share an input share its quantizer."""
    return list({item.tensor: item for item in annotations}.values())

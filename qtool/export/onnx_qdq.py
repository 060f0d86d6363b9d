"""Integer model -> ONNX with QuantizeLinear / DequantizeLinear pairs and packed weights.

torch.onnx traces the model once, with standard quantization operators at every integer layer;
then each layer's weight is rewritten in the form that the target runs fastest.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.export.annotation import Annotation, write_annotations, write_metadata
from qtool.export.quiet import quietly
from qtool.export.targets import TARGETS
from qtool.export.weights import LAYER, ROLE, WeightWriter, choose_forms, to_proto
from qtool.integer.layers import IntegerLayer, converted_state, integer_layers, replace_module

SHIFT = 128  # a signed grid travels as uint8 around this zero point: the kernels want uint8


class _QdqLayer(nn.Module):
    """An integer layer as torch.onnx should see it."""

    codes: Tensor
    bias: Tensor | None

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        self.spec, self.operate = layer.spec, layer.operate
        self.register_buffer("codes", layer.codes)
        grid = layer.spec.input
        self.limits: tuple[int, int] | None = None
        if grid is not None and layer.input_zero_point is not None:
            shift = SHIFT if grid.signed else 0
            zero = layer.input_zero_point.to(torch.int32) + shift
            self.register_buffer("input_scale", layer.input_scale)
            self.register_buffer("input_zero_point", zero.to(torch.uint8))
            self.limits = (grid.qmin + shift, grid.qmax + shift)
            self.register_buffer("input_low", torch.tensor(self.limits[0], dtype=torch.uint8))
            self.register_buffer("input_high", torch.tensor(self.limits[1], dtype=torch.uint8))
        if layer.weight_scale is not None:
            self.register_buffer("weight_scale", layer.weight_scale)
            self.register_buffer(
                "weight_zero_point", torch.zeros_like(layer.weight_scale).to(torch.int8)
            )
        self.register_buffer("bias", layer.bias)
        if layer.spec.bias == "int32":
            self.register_buffer("bias_scale", layer.bias_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Emit Q, Clip, DQ on the input, DQ on weight and bias, and the float operator."""
        if self.limits is not None:
            x = self._quantized_input(x)
        weight, bias = self.codes, self.bias
        if self.spec.weight_bits is not None:
            inputs = [self.codes, self.weight_scale, self.weight_zero_point]
            weight = self._emit("DequantizeLinear", "weight", inputs, torch.float32, axis=0)
        if bias is not None and self.spec.bias == "int32":
            inputs = [bias, self.bias_scale]
            bias = self._emit("DequantizeLinear", "bias", inputs, torch.float32, axis=0)
        return self.operate(x, weight, bias)

    def _quantized_input(self, x: Tensor) -> Tensor:
        pair = [self.input_scale, self.input_zero_point]
        q = self._emit("QuantizeLinear", "input", [x, *pair], torch.uint8)
        if self.limits != (0, 255):
            q = self._emit("Clip", "clip", [q, self.input_low, self.input_high], torch.uint8)
        return self._emit("DequantizeLinear", "real_input", [q, *pair], torch.float32)

    def _emit(
        self, operator: str, role: str, inputs: list[Any], dtype: torch.dtype, **attributes: Any
    ) -> Tensor:
        """Put a standard operator into the graph, marked with the layer and its role there."""
        marks = {LAYER: self.spec.name, ROLE: role}
        return torch.onnx.ops.symbolic(
            operator,
            inputs,
            attributes,
            dtype=dtype,
            shape=inputs[0].shape,
            metadata_props=marks,
        )


def export_onnx(
    integer: nn.Module,
    example: Tensor,
    path: Path | str,
    target: str = "onnxruntime",
    *,
    batch: int | None = None,
    annotate: bool = True,
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
        replace_module(model, name, _QdqLayer(layer))
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
    proto = to_proto(graph)
    proto.producer_name = "qtool"
    if annotate:
        write_annotations(proto.graph, _distinct(annotations))
    described = {
        **(metadata or {}),
        "target": target,
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


def traced(model: nn.Module, example: Tensor, opset: int, batch: int | None) -> ir.Model:
    """Return the ONNX graph of a model; the input is `images`, the output `logits`.

    Raises:
        ExportError: If torch.onnx cannot express the model.
    """
    if batch is None and example.shape[0] == 1:
        example = torch.cat([example, example])  # a batch of one would be taken for a constant
    if batch is not None:
        example = example[:1].expand(batch, *example.shape[1:]).contiguous()
    shapes = None if batch is not None else ({0: torch.export.Dim("batch")},)
    try:
        with quietly():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"torch.onnx cannot express the model: {reason[0] if reason else error!r}"
        ) from error
    assert program is not None
    return program.model

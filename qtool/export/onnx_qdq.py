"""Integer model -> ONNX with QuantizeLinear / DequantizeLinear pairs and packed weights.

torch.onnx traces the model once, with standard quantization operators at every integer layer;
then each layer's weight is rewritten in the form that the target runs fastest.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

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

Ceil = Literal["exact", "shifted"]
SHIFT = 128  # a signed grid travels as uint8 around this zero point: the kernels want uint8


class _QdqLayer(nn.Module):
    """An integer layer as torch.onnx should see it."""

    codes: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor
    input_step: Tensor
    input_low: Tensor
    input_high: Tensor
    half_step: Tensor
    one: Tensor
    none: Tensor
    two: Tensor
    below: Tensor

    def __init__(self, layer: IntegerLayer, ceil: Ceil) -> None:
        super().__init__()
        self.spec, self.operate = layer.spec, layer.operate
        self.register_buffer("codes", layer.codes)
        grid = layer.spec.input
        self.limits: tuple[int, int] | None = None
        if grid is not None and layer.input_zero_point is not None:
            assert layer.input_scale is not None
            shift = SHIFT if grid.signed else 0
            zero = layer.input_zero_point.to(torch.int32) + shift
            self.register_buffer("input_scale", layer.input_scale)
            self.register_buffer("input_zero_point", zero.to(torch.uint8))
            self.limits = (grid.qmin + shift, grid.qmax + shift)
            self.bipolar = grid.kind == "mid_rise"
            self.ceils = layer.spec.input_rounding == "ceil" and ceil == "exact"
            self.shifts = self.bipolar or layer.spec.input_rounding == "ceil"
            if self.bipolar:
                self.limits = (0, 1)
            self.steps = (self.limits[0] - int(zero), self.limits[1] - int(zero))
            self.register_buffer("input_step", layer.input_scale * grid.code_step)
            self.register_buffer("input_low", torch.tensor(self.limits[0], dtype=torch.uint8))
            self.register_buffer("input_high", torch.tensor(self.limits[1], dtype=torch.uint8))
            for name, value in (("one", 1.0), ("half_step", float(self.input_step) / 2)):
                self.register_buffer(name, torch.tensor(value))
            for name, value in (("none", 0), ("two", 2), ("below", SHIFT - 1)):
                self.register_buffer(name, torch.tensor(value, dtype=torch.uint8))
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
        """Emit what turns x into codes, and DequantizeLinear.

        ceil: Div, Ceil, a float Clip, and QuantizeLinear with scale 1; or half a step added before
        an ordinary QuantizeLinear, which differs at and next to whole steps. {-1, +1}: half a step
        added, QuantizeLinear, Clip to {0, 1}, and 2q - 1 around the zero point.
        """
        zero = self.input_zero_point
        if self.ceils:
            u = torch.ceil(x / self.input_scale).clamp(*self.steps)
            q = self._emit("QuantizeLinear", "input", [u, self.one, zero], torch.uint8)
        else:
            if self.shifts:
                x = x + self.half_step
            pair = [self.input_step, self.none if self.bipolar else zero]
            q = self._emit("QuantizeLinear", "input", [x, *pair], torch.uint8)
            if self.limits != (0, 255):
                q = self._emit("Clip", "clip", [q, self.input_low, self.input_high], torch.uint8)
        if self.bipolar:
            q = self._emit("Mul", "double", [q, self.two], torch.uint8)
            q = self._emit("Add", "sign", [q, self.below], torch.uint8)
        inputs = [q, self.input_scale, zero]
        return self._emit("DequantizeLinear", "real_input", inputs, torch.float32)

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
        replace_module(model, name, _QdqLayer(layer, ceil))
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

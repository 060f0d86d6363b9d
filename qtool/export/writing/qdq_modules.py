"""Integer layers and ReLUs as torch.onnx should see them: standard quantization operators."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.export.writing.weights import LAYER, ROLE
from qtool.graph.calls import CountsCalls
from qtool.graph.sites.running import apart, run_call
from qtool.graph.swap import GIVEN_BY, Part, take_attributes
from qtool.integer.layers import IntegerLayer
from qtool.integer.relu import IntegerReLU
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.weight_rows import WeightRows

Ceil = Literal["exact", "shifted"]
TINY = 1e-6  # steps: what float sums that should be zero come to, and hardly any other value
SHIFT = 128  # a signed grid travels as uint8 around this zero point: the kernels want uint8


def emit(
    owner: str,
    operator: str,
    role: str,
    inputs: list[Tensor],
    dtype: torch.dtype,
    *,
    axis: int | None = None,
    shape: Sequence[int | torch.SymInt] | None = None,
) -> Tensor:
    """Put a standard operator into the graph, marked with its owner and its role there.

    Its result has the first input's shape where none is given.
    """
    return torch.onnx.ops.symbolic(
        operator,
        inputs,
        {} if axis is None else {"axis": axis},
        dtype=dtype,
        shape=inputs[0].shape if shape is None else shape,
        metadata_props={LAYER: owner, ROLE: role},
    )


class QdqValues(nn.Module):
    """What turns real values into codes, and DequantizeLinear.

    ceil: Div, Ceil, a float Clip, and QuantizeLinear with scale 1; or half a step added before an
    ordinary QuantizeLinear, which differs at and next to whole steps. {-1, +1}: QuantizeLinear with
    a scale so small that all values saturate but zero, which becomes its zero point, 127; Clip to
    127 and 129; DequantizeLinear around 128, which what lies between .5 and 1.5 of it becomes.
    """

    scale: Tensor
    zero_point: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    half_step: Tensor
    one: Tensor
    below: Tensor
    tiny_step: Tensor

    def __init__(
        self,
        owner: str,
        values: OnGrid,
        ceil: Ceil,
        *,
        top: int | None = None,
        bottom: int | None = None,
        clips: bool = True,
    ) -> None:
        """Take what there is to know of the values.

        Args:
            owner: the layer or site that they stand at.
            values: their grid, with one scale, [].
            ceil: how rounding up is written.
            top: the largest code, where that is not the grid's.
            bottom: the smallest code, likewise.
            clips: whether values may lie beyond the grid; else no Clip is written.
        """
        super().__init__()
        grid, rounds_up = values.grid, values.rounding is ROUNDINGS["ceil"]
        self.owner, self.bipolar = owner, grid.kind == "mid_rise"
        self.ceils = rounds_up and ceil == "exact"
        self.shifts = rounds_up and not self.bipolar
        shift = SHIFT if grid.signed else 0
        zero = int(values.zero_point) + shift
        low = grid.qmin if bottom is None else max(grid.qmin, bottom)
        high = grid.qmax if top is None else min(grid.qmax, top)
        self.limits = (SHIFT - 1, SHIFT + 1) if self.bipolar else (low + shift, high + shift)
        self.clips = clips and self.limits != (0, 255)
        self.steps = (self.limits[0] - zero, self.limits[1] - zero)
        self.register_buffer("scale", values.scale.clone())
        self.register_buffer("step", values.step)
        self.register_buffer("tiny_step", values.step * TINY)
        for name, value in (("one", 1.0), ("half_step", float(self.step) / 2)):
            self.register_buffer(name, torch.tensor(value))
        integers = {"zero_point": zero, "low": self.limits[0], "high": self.limits[1]}
        integers |= {"below": SHIFT - 1}
        for name, value in integers.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Emit the operators; return real values of the grid, x's shape."""
        if self.ceils:
            u = torch.ceil(x / self.scale).clamp(*self.steps)
            q = self._emit("QuantizeLinear", "input", [u, self.one, self.zero_point])
        else:
            if self.shifts:
                x = x + self.half_step
            pair = [self.step, self.zero_point]
            if self.bipolar:
                pair = [self.tiny_step, self.below]
            q = self._emit("QuantizeLinear", "input", [x, *pair])
            if self.clips:
                q = self._emit("Clip", "clip", [q, self.low, self.high])
        inputs = [q, self.scale, self.zero_point]
        return emit(self.owner, "DequantizeLinear", "real_input", inputs, torch.float32)

    def _emit(self, operator: str, role: str, inputs: list[Tensor]) -> Tensor:
        return emit(self.owner, operator, role, inputs, torch.uint8)


class QdqLayer(Part):
    """An integer layer: Q, Clip, DQ on its input, DQ on weight and bias, the float operator.

    Q, Clip, DQ on its output, too, where it rounds that.
    """

    maker = "qtool.export_onnx"

    codes: Tensor
    codes_of_file: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias_scale: Tensor

    def __init__(self, layer: IntegerLayer, ceil: Ceil) -> None:
        super().__init__()
        spec = layer.spec
        self.spec, self.called_with, self.function = spec, layer.called_with, layer.function
        self.real_weight = layer.real_weight
        take_attributes(self, layer)
        self.register_buffer("codes", layer.codes)
        self.register_buffer("codes_of_file", layer.codes_of_file.contiguous())
        self.values: QdqValues | None = None
        self.output: QdqValues | None = None
        given, made = layer.input_on_grid, layer.output_on_grid
        if given is not None and not spec.input_from:
            self.values = QdqValues(spec.name, given, ceil)
        if made is not None:
            top, bottom = spec.output_top, spec.output_bottom
            self.output = QdqValues(spec.output_site, made, ceil, top=top, bottom=bottom)
        if layer.weight_scale is not None:
            self.register_buffer("weight_scale", layer.weight_scale)
            zeros = torch.zeros_like(layer.weight_scale).to(torch.int8)
            self.register_buffer("weight_zero_point", zeros)
        self.register_buffer("bias", layer.bias)
        if spec.bias == "int32":
            self.register_buffer("bias_scale", layer.bias_scale)

    @property
    def weight(self) -> Tensor:
        """Return w_hat, for models that look at the weight of a layer, or give it to a function."""
        weight = apart(self.real_weight)
        setattr(weight, GIVEN_BY, self)
        return weight

    def forward(self, input: Tensor, *more: list[int], **named: list[int]) -> Tensor:
        """Emit the operators; return the layer's output."""
        layer = self.called_with(input, *more, **named)
        return cast(Tensor, run_call(self, self.function, apart(self._emit, input, layer)))

    def _emit(self, x: Tensor, layer: IntegerLayer) -> Tensor:
        name, bias = self.spec.name, self.bias
        around = x.shape[:-1]
        flat = self.spec.kind == "Linear" and x.ndim > 2
        if flat:  # the runtimes' kernels of integers multiply matrices, with a bias
            x = x.flatten(0, -2)
        if self.values is not None:
            x = self.values(x)
        weight = self._emit_weight(layer.layout)
        if bias is not None and self.spec.bias == "int32":
            inputs = [bias, self.bias_scale]
            bias = emit(name, "DequantizeLinear", "bias", inputs, torch.float32, axis=0)
        y = layer.operate(x, weight, bias)
        if flat:
            y = y.reshape(*around, y.shape[-1])
        return y if self.output is None else self.output(y)

    def _emit_weight(self, layout: WeightRows) -> Tensor:
        """Emit DequantizeLinear on the codes; return the weight.

        Where no axis of the weight holds the output channels, as in a transposed convolution of
        groups, it is on the weight's rows, and the runtime puts these into the weight's order.
        """
        if self.spec.weight_bits is None:
            return self.codes
        inputs = [self.codes_of_file, self.weight_scale, self.weight_zero_point]
        name, kind, axis = self.spec.name, torch.float32, layout.axis or 0
        weight = emit(name, "DequantizeLinear", "weight", inputs, kind, axis=axis)
        return weight if layout.axis is not None else layout.weight(weight)


class QdqReLU(CountsCalls):
    """A quantized ReLU: Relu, and Q, Clip, DQ of its own for each call."""

    def __init__(self, relu: IntegerReLU, ceil: Ceil) -> None:
        super().__init__(len(relu.spec.calls))
        self.values = nn.ModuleList(
            nn.Identity()
            if (output := relu.on_grid(call)) is None
            else QdqValues(str(relu.spec.site(call)), output, ceil)
            for call in range(len(relu.spec.calls))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Emit the operators; return real values of the grid, x's shape."""
        call = self.next_call()
        x = F.relu(x)
        return self.values[call](x) if call < len(self.values) else x

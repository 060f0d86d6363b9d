"""What all layers share that hold integer weights and their scales, and compute in exact integers.

    y = (conv(q_x - z_x, codes) + bias) * s_x * s_w

and, where the output is quantized, too, as ONNX Runtime's kernels do,

    q_y = rint((conv(q_x - z_x, codes) + bias) * f32((s_x s_w) / s_y)) + z_y

The integers travel as floats: as float32 while every partial sum stays below 2^24, where float32
still holds each integer, else as float64; factors have 8 bits, which TF32 does not shorten. A side
that was left float takes part as it is.
"""

from abc import ABC, abstractmethod
from typing import Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from qtool.graph.sites.running import apart, run_call
from qtool.graph.swap import GIVEN_BY, Part
from qtool.integer.site_specs import round_to_values
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.weight_rows import WeightRows
from qtool.reports.layers import Layer
from qtool.reports.result import Json

EXACT_FLOAT32 = 2**24


class LayerSpec(Layer):
    """What an integer layer is, apart from its tensors; kept in the integer model's metadata."""

    @model_validator(mode="after")
    def _grids_are_known(self) -> Self:
        _grid(self.weight_bits, self.weight_grid)  # raises ValueError where there is no such grid
        _grid(self.input_bits, self.input_grid)
        _grid(self.output_bits, self.output_grid)
        return self

    @property
    def weight(self) -> IntegerGrid | None:
        """Return the weight's grid."""
        return _grid(self.weight_bits, self.weight_grid)

    @property
    def input(self) -> IntegerGrid | None:
        """Return the input's grid."""
        return _grid(self.input_bits, self.input_grid)

    @property
    def output(self) -> IntegerGrid | None:
        """Return the output's grid."""
        return _grid(self.output_bits, self.output_grid)

    @property
    def weights(self) -> int:
        """Return the number of weights."""
        return torch.Size(self.shape).numel()

    def as_dict(self) -> Json:
        """Return plain data, with all keys."""
        return self.model_dump()


def _grid(bits: int | None, kind: str | None) -> IntegerGrid | None:
    return None if bits is None or kind is None else IntegerGrid(bits, cast(Kind, kind))


class IntegerLayer(Part, ABC):
    """A layer in integers.

    Attributes:
        layout: how the rows of the weight, one for each output channel, lie in it.
        codes: int8, the weight's shape; float32 weights where they were left float.
        weight_scale: float32 [C] or []; absent for float weights.
        bias: int32 or float32 [C]; absent where there is none.
        input_scale: float32 [], of the input's codes: s, or s / 2 on mid_rise; absent for a float
            input.
        input_zero_point: int32 [].
        function: the name of what it does in `qtool.graph.sites.functions`.
        output_scale, output_zero_point: float32 [] and int32 [], of the output's codes; absent
            where it stays float.
    """

    maker = "qtool.convert"
    function: str

    codes: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    output_scale: Tensor | None
    output_zero_point: Tensor | None

    def __init__(self, spec: LayerSpec, layout: WeightRows | None = None) -> None:
        super().__init__()
        self.spec, self.layout = spec, layout or WeightRows()
        channels = self.layout.channels(spec.shape)
        quantized = spec.weight_bits is not None
        codes = torch.zeros(spec.shape, dtype=torch.int8 if quantized else torch.float32)
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", torch.ones(channels) if quantized else None)
        bias = None
        if spec.bias != "none":
            dtype = torch.int32 if spec.bias == "int32" else torch.float32
            bias = torch.zeros(channels, dtype=dtype)
        self.register_buffer("bias", bias)
        for side, bits in (("input", spec.input_bits), ("output", spec.output_bits)):
            scale, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
            self.register_buffer(f"{side}_scale", None if bits is None else scale)
            self.register_buffer(f"{side}_zero_point", None if bits is None else zero)
        self._small: tuple[list[int], bool] | None = None  # at which writes, float32 holds all sums
        self.register_load_state_dict_post_hook(_forget_sums)

    @abstractmethod
    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the bare convolution or matrix product."""

    def called_with(self, input: Tensor, output_size: list[int] | None = None) -> "IntegerLayer":
        """Return the layer as a call with these arguments has it."""
        return self

    @abstractmethod
    def channelwise(self, values: Tensor) -> Tensor:
        """Return values [C] shaped to broadcast over the output."""

    @property
    def weight_on_grid(self) -> OnGrid | None:
        """Return the grid of the weight's rows and their scales [C, 1, ...]; None where float."""
        if self.spec.weight is None or self.weight_scale is None:
            return None
        columns = self.weight_scale.reshape(-1, *[1] * (self.codes.ndim - 1))
        return OnGrid(self.spec.weight, columns)

    @property
    def input_on_grid(self) -> OnGrid | None:
        """Return the input's grid, scale and zero point; None where it is float."""
        grid, scale, zero = self.spec.input, self.input_scale, self.input_zero_point
        if grid is None or scale is None or zero is None:
            return None
        return OnGrid(grid, scale, zero, ROUNDINGS[self.spec.input_rounding])

    @property
    def output_on_grid(self) -> OnGrid | None:
        """Return the output's grid, scale and zero point; None where it is float."""
        grid, scale, zero = self.spec.output, self.output_scale, self.output_zero_point
        if grid is None or scale is None or zero is None:
            return None
        return OnGrid(grid, scale, zero, ROUNDINGS[self.spec.output_rounding])

    @property
    def weight(self) -> Tensor:
        """Return w_hat, for models that look at the weight of a layer, or give it to a function.

        Those that torch.compile looks into may give the codes on, and nothing else.
        """
        if torch.compiler.is_dynamo_compiling():
            return self.codes
        weight = apart(self.real_weight)
        if weight is not self.codes:
            setattr(weight, GIVEN_BY, self)
        return weight

    @property
    def codes_of_file(self) -> Tensor:
        """Return the codes as an ONNX file holds them, with the output channels along an axis.

        Those of a transposed convolution of groups are its rows there, [C, in / groups, ...].
        """
        return self.codes if self.layout.axis is not None else self.layout.rows(self.codes)

    def real_weight(self) -> Tensor:
        """Return w_hat = code * scale, float32, the weight's shape."""
        weight = self.weight_on_grid
        if weight is None:
            return self.codes
        return self.layout.weight(weight.values(self.layout.rows(self.codes).float()))

    def real_bias(self) -> Tensor | None:
        """Return the bias as real numbers, float32 [C]."""
        if self.bias is None or self.spec.bias != "int32":
            return self.bias
        return self.bias.float() * self.bias_scale

    @property
    def bias_scale(self) -> Tensor:
        """Return s_x s_w, float32 [C]: the step of the accumulator and of an int32 bias.

        Raises:
            AttributeError: If a side is float; torch.jit.trace asks for all that there is.
        """
        if self.input_scale is None or self.weight_scale is None:
            raise AttributeError(f"{self.spec.name} has a float input or weight, and no such step")
        return self.input_scale * self.weight_scale

    def input_codes(self, x: Tensor) -> Tensor:
        """Return the codes of an input, integers in float32, x's shape."""
        given = self.input_on_grid
        assert given is not None
        return given.codes(x.float())

    def largest_sum(self) -> int:
        """Return the largest absolute value an integer partial sum can take."""
        given = self.input_on_grid
        assert given is not None
        codes = self.layout.rows(self.codes).to(torch.int64)
        sums = codes.abs().flatten(1).sum(1) * int(given.reach)
        if self.spec.bias == "int32" and self.bias is not None:
            sums = sums + self.bias.to(torch.int64).abs()
        return int(sums.max())

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, float32, also inside of an autocast."""
        # what may stand at its call rounds outputs that are rounded in several ways
        return cast(Tensor, run_call(self, self.function, apart(self.output, input)))

    def output(self, input: Tensor) -> Tensor:
        """Return what the layer itself makes of an input, float32."""
        device = input.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._compute(input.float())
        return self._compute(input)

    def _compute(self, x: Tensor) -> Tensor:
        output, spec = self.output_on_grid, self.spec
        if output is None:
            return self.real_output(x)
        if self._sums_integers and spec.bias != "float32":
            steps = self._sums(x) * self.channelwise(self.bias_scale / output.step)
        else:
            steps = self.real_output(x).float() / output.step
        return round_to_values(steps, output, top=spec.output_top, bottom=spec.output_bottom)

    def real_output(self, x: Tensor) -> Tensor:
        """Return the output before it is rounded, of real values x."""
        given = self.input_on_grid
        if given is None:
            return self.operate(x, self.real_weight(), self.real_bias())
        if self.weight_scale is None:
            return self.operate(given.values(given.codes(x.float())), self.codes, self.bias)
        y = self._sums(x) * self.channelwise(self.bias_scale)
        if self.bias is not None and self.spec.bias == "float32":
            y = y + self.channelwise(self.bias)
        return y

    @property
    def _sums_integers(self) -> bool:
        return self.input_scale is not None and self.weight_scale is not None

    def _sums(self, x: Tensor) -> Tensor:
        """Return the sums of products of codes, and of an int32 bias: integers in float32."""
        given = self.input_on_grid
        assert given is not None
        codes = given.codes(x.float())
        work, bias = torch.float32 if self._fits_float32() else torch.float64, self.bias
        steps = (codes - given.zero_point).to(work)
        integer_bias = bias.to(work) if bias is not None and self.spec.bias == "int32" else None
        total = self.operate(steps, self.codes.to(work), integer_bias)
        # a fast convolution algorithm may be off by less than half an integer
        return total.round_().float()

    def _fits_float32(self) -> bool:
        """Tell whether float32 holds every sum; counted once for codes and bias as they are now.

        While the layer is traced nothing is counted: it does where that is known, float64 always.
        """
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self._small is not None and self._small[1]
        writes = [0 if t.is_inference() else t._version for t in self.buffers()]
        if self._small is None or self._small[0] != writes:
            self._small = writes, self.largest_sum() < EXACT_FLOAT32
        return self._small[1]

    def extra_repr(self) -> str:
        """Show the widths in `print(model)`."""
        given, made = self.spec.input, self.spec.output
        output = "" if made is None else f", output {made}"
        return f"weights {self.spec.weight}, input {given}, bias {self.spec.bias}{output}"


def _forget_sums(layer: nn.Module, keys: object) -> None:
    """Forget how large sums may be, for other codes were loaded."""
    assert isinstance(layer, IntegerLayer)
    layer._small = None

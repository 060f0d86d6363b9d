"""What result files say of the layers of an integer model, and of those of an ONNX file."""

from typing import Literal

from pydantic import Field

from qtool.reports.result import Result

Kind = Literal[
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
]
"""Layers that have an integer form, by the names that torch.nn has for them."""


class Layer(Result):
    """What an integer layer is, apart from its tensors."""

    name: str
    """Of the module."""
    kind: Kind
    shape: list[int]
    """Of the weight."""
    weight_bits: int | None
    """Null where the weight is float."""
    weight_grid: str | None
    input_bits: int | None
    """Null where the input is float."""
    input_grid: str | None
    bias: Literal["int32", "float32", "none"]
    """int32 has the scale s_x s_w; float32 is added after dequantization."""
    batch_norm: str | None = None
    """Name of the batch norm that was folded in."""
    unfused: str = ""
    """Why a runtime cannot run this layer in integers alone."""
    rewritten: int = 0
    """Channels whose codes were written as 0, because only their bias matters."""
    weight_estimator: str = ""
    """What training used."""
    input_estimator: str = ""
    input_rounding: Literal["half_to_even", "ceil"] = "half_to_even"
    input_from: str = ""
    """The ReLU that puts the input on its grid already, and its call, as NAME:CALL; or the call
    site that does, as BLOCK:FUNCTIONn."""
    output_bits: int | None = None
    """Null where the output is float."""
    output_grid: str | None = None
    output_rounding: Literal["half_to_even", "ceil"] = "half_to_even"
    output_site: str = ""
    """The call site where the output's quantizer stood, as BLOCK:FUNCTIONn."""
    output_top: int | None = None
    """The largest code of the output, where a clip ends below the grid's."""
    output_bottom: int | None = None
    """The smallest code of the output, where a ReLU or clip ends above the grid's."""
    output_gate: Literal["", "hardsigmoid"] = ""
    """The gate behind the layer that its scales and bias hold: y / 6 + 1/2, cut off at 0 and 1."""
    fewer_steps: int = 0
    """Channels that were rounded anew so that they cannot saturate: of a run in steps of one bit
    fewer, of a recipe with codes that fit beside their neighbours."""


class Site(Result):
    """What stands at a call site of an integer model, and rounds what the call makes."""

    site: str
    """BLOCK:FUNCTIONn."""
    kind: str
    """How it computes: add, mul, cat, ... in codes; rounded where the function is float."""
    bits: int
    grid: str
    inputs: list[str] = Field(default_factory=list)
    """Where its operands get onto their grids; none where it computes in float."""
    norm: str = ""
    """Name of the module, where it is a norm as a convolution of each channel by itself."""


class StoredCodes(Result):
    """Where a layer's weight stands in a file."""

    codes: str
    """Name of the tensor, "" where the weight is float or another layer's."""
    packed_bytes: int


class ExportedLayer(Layer, StoredCodes):
    """What an ONNX file says of a layer."""

    integer_kernel: bool = False
    """The target chose its form because the runtime runs it in integers alone."""
    zero_point: int = 0
    """What the file adds to the codes: 128 where they stand as uint8."""

"""Layers that hold integer weights: the kinds, each of which computes as torch's layer does."""

from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.swap import take_attributes
from qtool.integer.layer import EXACT_FLOAT32, IntegerLayer, LayerSpec
from qtool.numerics.weight_rows import WeightRows

__all__ = [
    "EXACT_FLOAT32",
    "IntegerConv1d",
    "IntegerConv2d",
    "IntegerConv3d",
    "IntegerConvTranspose1d",
    "IntegerConvTranspose2d",
    "IntegerConvTranspose3d",
    "IntegerLayer",
    "IntegerLinear",
    "LayerSpec",
    "integer_layers",
    "make_integer_layer",
]


class IntegerConvolution(IntegerLayer):
    """A convolution in integers, [B, C, ...] to [B, C', ...]."""

    def __init__(self, spec: LayerSpec, source: nn.modules.conv._ConvNd) -> None:
        super().__init__(spec, WeightRows(transposed=source.transposed, groups=source.groups))
        self.function = f"conv{'_transpose' if source.transposed else ''}{len(source.stride)}d"
        self.stride, self.padding, self.dilation = source.stride, source.padding, source.dilation
        self.groups, self.padding_mode = source.groups, source.padding_mode
        self.kernel_size, self.output_padding = source.kernel_size, source.output_padding
        self.around = source._reversed_padding_repeated_twice

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return conv(x, weight) + bias."""
        padding, convolve = self.padding, getattr(torch, self.function)
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.around, mode=self.padding_mode), 0
        return convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def channelwise(self, values: Tensor) -> Tensor:
        """Return values [C] as [C, 1, ...]."""
        return values.reshape(-1, *[1] * len(self.stride))


class IntegerConv1d(IntegerConvolution):
    """A convolution in integers, [B, C, L] to [B, C', L']."""


class IntegerConv2d(IntegerConvolution):
    """A convolution in integers, [B, C, H, W] to [B, C', H', W']."""


class IntegerConv3d(IntegerConvolution):
    """A convolution in integers, [B, C, D, H, W] to [B, C', D', H', W']."""


class IntegerConvTransposed(IntegerConvolution):
    """A transposed convolution in integers, [B, C, ...] to [B, C', ...]."""

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the transposed conv(x, weight) + bias."""
        around = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return getattr(torch, self.function)(x, weight, bias, *around)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the layer's output, float32, of a size if one is given."""
        return IntegerLayer.forward(self.called_with(input, output_size), input)

    def called_with(self, input: Tensor, output_size: list[int] | None = None) -> IntegerLayer:
        """Return the layer with the padding that makes its output as large as a call asks for."""
        if output_size is None:
            return self
        sizes = zip(
            input.shape[-len(self.stride) :],
            *(self.stride, self.padding, self.dilation, self.kernel_size),
            output_size[-len(self.stride) :],
            strict=True,
        )
        made = copy(self)
        made.output_padding = tuple(
            size - ((given - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for given, stride, padding, dilation, kernel, size in sizes
        )
        return made


class IntegerConvTranspose1d(IntegerConvTransposed):
    """A transposed convolution in integers, [B, C, L] to [B, C', L']."""


class IntegerConvTranspose2d(IntegerConvTransposed):
    """A transposed convolution in integers, [B, C, H, W] to [B, C', H', W']."""


class IntegerConvTranspose3d(IntegerConvTransposed):
    """A transposed convolution in integers, [B, C, D, H, W] to [B, C', D', H', W']."""


class IntegerLinear(IntegerLayer):
    """A linear layer in integers, [..., in] to [..., out]."""

    function = "linear"

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ weight.T + bias."""
        return F.linear(x, weight, bias)

    def channelwise(self, values: Tensor) -> Tensor:
        """Return values [C] as they are: channels are innermost."""
        return values


_KINDS: dict[type[nn.modules.conv._ConvNd], type[IntegerConvolution]] = {
    nn.Conv1d: IntegerConv1d,
    nn.Conv2d: IntegerConv2d,
    nn.Conv3d: IntegerConv3d,
    nn.ConvTranspose1d: IntegerConvTranspose1d,
    nn.ConvTranspose2d: IntegerConvTranspose2d,
    nn.ConvTranspose3d: IntegerConvTranspose3d,
}


def make_integer_layer(spec: LayerSpec, source: nn.Module) -> IntegerLayer:
    """Return an integer layer with empty tensors; stride and the like come from `source`."""
    made: IntegerLayer | None = None
    for kind, integer in _KINDS.items():
        if isinstance(source, kind):
            made = integer(spec, source)
    made = made or IntegerLinear(spec)
    take_attributes(made, source)
    return made


def integer_layers(model: nn.Module) -> dict[str, IntegerLayer]:
    """Return every integer layer by its name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, IntegerLayer)}

"""The float network that an exported file is timed against."""

from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.calls import count_calls
from qtool.graph.copies import copy_of
from qtool.graph.swap import replace_module
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.integer.relu import integer_relus


class FloatLayer(nn.Module):
    """An integer layer with its weight and bias as float numbers, and nothing rounded."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: IntegerLayer) -> None:
        """Take the layer that this one computes in float."""
        super().__init__()
        self.operate = layer.operate
        self.register_buffer("weight", layer.real_weight())
        self.register_buffer("bias", layer.real_bias())

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution or the matrix product."""
        return self.operate(input, self.weight, self.bias)


class FloatReLU(nn.Module):
    """A quantized ReLU that rounds nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Return max(input, 0)."""
        return F.relu(input)


def dequantized(integer: nn.Module) -> nn.Module:
    """Return the integer model in float: the same operators, norms folded, nothing rounded."""
    model = copy_of(integer).cpu().eval()
    for name, layer in integer_layers(model).items():
        model = replace_module(model, name, FloatLayer(layer))
    for name in integer_relus(model):
        model = replace_module(model, name, FloatReLU())
    count_calls(model)
    return model

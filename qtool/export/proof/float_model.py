"""The float network that an exported file is timed against."""

from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.calls import count_calls
from qtool.graph.copies import copy_of
from qtool.graph.inputs import tensors_in
from qtool.graph.sites.frames import call_sites_of, counts_of, install, sites_of
from qtool.graph.swap import replace_module
from qtool.integer.at_site import Args, Function, Kwargs, Passed
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.integer.relu import integer_relus

NORMS = ("batch_norm", "group_norm", "layer_norm")


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


class FloatCall(nn.Module):
    """A call whose result is not rounded."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return what the function gives."""
        return function(*args, **kwargs)


class FloatGate(FloatCall):
    """A hardsigmoid whose factor and shift are those of the layer before it."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the argument between 0 and 1."""
        return next(tensors_in((args, dict(kwargs)))).clamp(0, 1)


def dequantized(integer: nn.Module) -> nn.Module:
    """Return the integer model in float: the same operators, norms folded, nothing rounded."""
    model = copy_of(integer).cpu().eval()
    for name, layer in integer_layers(model).items():
        model = replace_module(model, name, FloatLayer(layer))
    for name in integer_relus(model):
        model = replace_module(model, name, FloatReLU())
    count_calls(model)
    calls = call_sites_of(model)
    if calls:
        standing = {calls[site]: _in_float(module) for site, module in sites_of(model).items()}
        install(model, standing, counts_of(model))
    return model


def _in_float(module: nn.Module) -> nn.Module:
    """Return what computes in float what a module at a site does in integers."""
    if isinstance(module, Passed):
        function = module.spec.site.function
        if function in NORMS:  # folded into the layer before it
            return module
        if function == "hardsigmoid":
            return FloatGate()
    return FloatCall()

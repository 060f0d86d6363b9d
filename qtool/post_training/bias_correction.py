"""Bias correction: what rounding does to the mean of a layer's output is taken back.

    b <- b + E[y] - E[y_hat],   for each channel, over calibration images and positions

with y of the float network, and y_hat of this layer as it is quantized on what the quantized layers
before it give. Rounded weights are off by a constant, and inputs that are never below zero have a
mean: their product is an error that does not average out over a network.

Reference: Nagel et al., 2019, arXiv:1906.04721, section 4.2; the empirical form of its appendix.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from qtool.graph.norms import is_batch_norm
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import QuantLayer


@torch.no_grad()
def shift_output(model: nn.Module, name: str, layer: QuantLayer, by: Tensor) -> None:
    """Shift what a layer of a prepared model gives by float64 [C], in place.

    Its bias moves; where it has none, the mean that the batch norm behind it subtracts, or it gets
    a bias.
    """
    if layer.bias is None and (norm := _norm_behind(model, name)) is not None:
        assert norm.running_mean is not None
        norm.running_mean.copy_(norm.running_mean.double() - by)
    elif layer.bias is None:
        layer.bias = nn.Parameter(by.to(layer.weight.dtype), requires_grad=False)
    else:
        layer.bias.copy_(layer.bias.double() + by)


def _norm_behind(model: nn.Module, name: str) -> BatchNorm | None:
    """Return the batch norm that reads a layer's output and nothing else does, if there is one."""
    norm = prepared_state(model).recording.batch_norms.get(name)
    module = None if norm is None else model.get_submodule(norm)
    return module if isinstance(module, BatchNorm) and is_batch_norm(module) else None

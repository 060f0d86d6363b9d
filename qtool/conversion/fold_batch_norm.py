"""Batch norm into the scale and the bias; integer codes stay as they are, or are negated."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


@dataclass(frozen=True)
class Folded:
    """A layer after its batch norm was folded in.

    Attributes:
        sign: [C], -1 where gamma is negative and the channel's codes must be negated, else 1.
        scale: [C], float64, weight scales >= 0; 0 where gamma is 0.
        bias: [C], float64.
    """

    sign: Tensor
    scale: Tensor
    bias: Tensor


def fold_batch_norm(scale: Tensor, bias: Tensor | None, norm: BatchNorm) -> Folded:
    """Return scale and bias of a layer that does the batch norm's work too.

        gamma' = gamma / sqrt(var + eps);  s' = s |gamma'|;  b' = (b - mean) gamma' + beta

    Args:
        scale: weight scales [C] > 0 of the stored codes.
        bias: [C], or None for zeros.
        norm: a batch norm with running statistics over C channels.
    """
    assert norm.running_mean is not None
    mean = norm.running_mean.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    gain = gain_of(norm)
    start = torch.zeros_like(mean) if bias is None else bias.detach().double()
    sign = torch.where(gain < 0, -1, 1).to(torch.int8)
    return Folded(sign, scale.double() * gain.abs(), (start - mean) * gain + beta)


def gain_of(norm: BatchNorm) -> Tensor:
    """Return what a batch norm multiplies by, gamma / sqrt(var + eps), float64 [C]."""
    assert norm.running_var is not None
    variance = norm.running_var.double()
    gamma = torch.ones_like(variance) if norm.weight is None else norm.weight.detach().double()
    return gamma / torch.sqrt(variance + norm.eps)

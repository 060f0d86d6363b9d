"""Batch norm into the scale and the bias; integer codes stay as they are, or are negated."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from qtool.graph.affine import Affine, affine_of
from qtool.graph.norms import is_batch_norm
from qtool.graph.recording import Norm

LAST_BITS = 1e-12  # of float64, as a share of the values whose difference is taken


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


def foldable(model: nn.Module, norm: Norm) -> BatchNorm | Affine | None:
    """Return what a norm does to a layer's channels now; None where it is no longer affine."""
    module = model.get_submodule(norm.name)
    if isinstance(module, BatchNorm) and is_batch_norm(module):
        return module
    return affine_of(module, norm.shape, norm.axis)


def fold_batch_norm(scale: Tensor, bias: Tensor | None, norm: BatchNorm | Affine) -> Folded:
    """Return scale and bias of a layer that does the batch norm's work too.

        gamma' = gamma / sqrt(var + eps);  s' = s |gamma'|;  b' = (b - mean) gamma' + beta

    Args:
        scale: weight scales [C] > 0 of the stored codes.
        bias: [C], or None for zeros.
        norm: a batch norm with running statistics over C channels, or the gain gamma' and the
            shift beta - mean gamma' of what does as one would.
    """
    if isinstance(norm, Affine):
        gain, shift, mean = norm.gain, norm.shift, torch.zeros_like(norm.gain)
    else:
        assert norm.running_mean is not None
        gain, mean = gain_of(norm), norm.running_mean.double()
        shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    start = torch.zeros_like(mean) if bias is None else bias.detach().double()
    sign = torch.where(gain < 0, -1, 1).to(torch.int8)
    return Folded(sign, scale.double() * gain.abs(), (start - mean) * gain + shift)


def gain_of(norm: BatchNorm) -> Tensor:
    """Return what a batch norm multiplies by, gamma / sqrt(var + eps), float64 [C]."""
    assert norm.running_var is not None
    variance = norm.running_var.double()
    gamma = torch.ones_like(variance) if norm.weight is None else norm.weight.detach().double()
    return gamma / torch.sqrt(variance + norm.eps)


@torch.no_grad()
def shift_norm(model: nn.Module, norm: Norm, layer_bias: Tensor | None, by: Tensor) -> None:
    """Shift what a norm puts out by float64 [C], by whatever constant does so.

    A batch norm without beta subtracts another mean; where a norm has no constant of its own, the
    bias of the layer before it moves, if there is one.
    """
    module = model.get_submodule(norm.name)
    constant = getattr(module, "bias", None)
    if isinstance(module, BatchNorm) and is_batch_norm(module) and constant is None:
        assert module.running_mean is not None
        gain = gain_of(module)
        before = torch.where(gain == 0, 0.0, by / gain)  # without gain, the output is 0 as it is
        module.running_mean.copy_(module.running_mean.double() - before)
        return
    if isinstance(constant, Tensor) and constant.numel() == by.numel():
        kept, was = constant.clone(), foldable(model, norm)
        constant.copy_(constant.double() + by.reshape(constant.shape))
        now = foldable(model, norm)
        if not isinstance(was, Affine) or (isinstance(now, Affine) and _moved(was, now, by)):
            return
        constant.copy_(kept)  # its bias is something else
    is_affine = foldable(model, norm)
    if layer_bias is not None and isinstance(is_affine, Affine):
        before = torch.where(is_affine.gain == 0, 0.0, by / is_affine.gain)
        layer_bias.copy_(layer_bias.double() + before)


def _moved(was: Affine, now: Affine, by: Tensor) -> bool:
    """Tell whether the shift has moved by as much as asked for, but for float32, and nothing else.

    A gain is the difference of two outputs in float64: another shift moves its last bits.
    """
    apart = (now.shift - was.shift - by).abs().max()
    room = LAST_BITS * (now.gain.abs() + now.shift.abs() + was.shift.abs())
    same_gain = bool(((now.gain - was.gain).abs() <= room).all())
    return same_gain and bool(apart <= 1e-5 * now.shift.abs().max())

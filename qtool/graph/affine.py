"""Affine maps of channels: what a batch norm is in evaluation mode, whatever it is called.

A module is asked what it does, in float64: y = gain x + shift with numbers of each channel, or
not. What it computes with does not matter: batch norms of other libraries, frozen ones and a
user's own are found like torch's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.graph.copies import copy_of

ROWS = 2  # entries of the batch that a module is tried on
TOLERANCE = 1e-9  # of the largest output: float64 sums of a few terms
SIZES = (1.0, 1e4)  # of the values that a module is tried on


@dataclass(frozen=True)
class Affine:
    """What a module does to each channel.

    Attributes:
        gain, shift: float64 [C].
    """

    gain: Tensor
    shift: Tensor


def channel_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's output that holds its channels, counted from the end."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return -1 - len(layer.kernel_size)
    return -1


@torch.no_grad()
def affine_of(module: nn.Module, shape: tuple[int, ...], axis: int) -> Affine | None:
    """Return what a module does in evaluation mode to each channel; None where that is not affine.

    Args:
        module: is not changed.
        shape: of a tensor that it takes; what it gives has to have the same.
        axis: of the channels, counted from the end.
    """
    whole = len(shape) + axis == 0  # the first axis holds the channels, not the batch
    tried = shape if whole else (min(ROWS, shape[0]), *shape[1:])
    device = next((t.device for t in [*module.parameters(), *module.buffers()]), None)
    generator = torch.Generator().manual_seed(0)
    channels = [1] * len(shape)
    channels[axis] = shape[axis]
    try:
        twin = copy_of(module).double().eval()
        with torch.random.fork_rng(devices=[]):
            zeros = torch.zeros(tried, dtype=torch.float64, device=device)
            at_zero, at_one = twin.forward(zeros.clone()), twin.forward(zeros + 1)
            shift, gain = _of_channels(at_zero, tried, axis), _of_channels(at_one, tried, axis)
            if shift is None or gain is None:
                return None
            gain = gain - shift
            for size in SIZES:
                x = torch.randn(tried, generator=generator, dtype=torch.float64) * size
                x = x.to(zeros.device)
                expected = gain.reshape(channels) * x + shift.reshape(channels)
                given = twin.forward(x.clone())
                room = TOLERANCE * (expected.abs().max() + shift.abs().max())
                if not bool(((given - expected).abs() <= room).all()):
                    return None
    except Exception:  # whatever a user's module raises where it is tried: it cannot be folded
        return None
    return Affine(gain, shift)


def _of_channels(given: object, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """Return the one value [C] that each channel has; None where values of a channel differ."""
    if not isinstance(given, Tensor) or given.dtype != torch.float64 or given.shape != shape:
        return None
    rows = given.movedim(axis, 0).flatten(1)
    apart = (rows - rows[:, :1]).abs().max()  # vector and scalar code differ in the last bit
    if not bool(torch.isfinite(rows).all()) or not bool(apart <= 1e-12 * rows.abs().max()):
        return None
    return rows[:, 0].clone()

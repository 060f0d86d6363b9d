"""Norms that cannot be folded into a layer, as convolutions of each channel by itself."""

import torch
from torch import nn

from qtool.conversion.fold_batch_norm import fold_batch_norm, foldable
from qtool.conversion.parts import Parts
from qtool.graph.recording import Norm
from qtool.graph.sites.value_graph import Operation
from qtool.integer.layers import LayerSpec
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.on_grid import OnGrid
from qtool.quantizers.places.placement import Join

NORM_BITS = 8


def norm_of(join: Join, operation: Operation) -> Norm:
    """Return the norm that a join is, [B, C, ...], by the shape that its call was seen to make."""
    shape = operation.shapes[0]
    return Norm(join.norm, "", shape=shape, axis=1 - len(shape))


def norm_parts(model: nn.Module, join: Join, operation: Operation, given: OnGrid) -> Parts | None:
    """Return a norm as a depthwise convolution; None where it is none.

    Its codes are +-127, so that each scale is the 127th part of a gain, and a step of the bias as
    small as that.

    Args:
        model: that it is a part of.
        join: that it became.
        operation: its call.
        given: what it reads.
    """
    shape = operation.shapes[0]
    affine = foldable(model, norm_of(join, operation))
    if affine is None:
        return None
    grid = IntegerGrid(NORM_BITS, "narrow")
    channels = shape[1]
    device = given.scale.device
    ones = torch.full((channels,), 1 / grid.qmax, dtype=torch.float64, device=device)
    folded = fold_batch_norm(ones, None, affine)
    spec = LayerSpec(
        name=join.norm,
        kind="Conv2d",
        shape=[channels, 1, 1, 1],
        weight_bits=grid.bits,
        weight_grid=grid.kind,
        input_bits=given.grid.bits,
        input_grid=given.grid.kind,
        bias="float32",
    )
    codes = (folded.sign * grid.qmax).to(torch.int8).reshape(-1, 1, 1, 1)
    return Parts(spec, codes, folded.scale, folded.bias)

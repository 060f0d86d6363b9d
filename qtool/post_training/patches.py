"""A layer as a product of matrices: what each of its outputs is computed from.

A convolution takes the same rows to each patch of its input; a transposed one does so once zeros
stand between the elements. So errors of its output, and what minimizes them, are those of a linear
layer: y [P, C] = x [P, groups, K] @ rows [groups, C / groups, K].
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.quantizers.layers import QuantLayer


def groups_of(layer: QuantLayer) -> int:
    """Return in how many groups a layer reads its input."""
    return layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1


def patches(layer: QuantLayer, x: Tensor, size: torch.Size) -> Tensor:
    """Return every patch of an input, a view where there is one, [B, O1, ..., groups, c, k1, ...].

    Args:
        layer: any that qtool quantizes.
        x: its input, [B, ...].
        size: the shape of its output, [B, ...].
    """
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return x.unsqueeze(-2)  # [..., 1, in]
    count = len(layer.kernel_size)
    if x.ndim == count + 1:
        x, size = x.unsqueeze(0), torch.Size((1, *size))
    if layer.transposed:
        x = _apart(layer, x, size[-count:])
        steps = (1,) * count
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, cast("list[int]", layer._reversed_padding_repeated_twice), mode=mode)
        steps = layer.stride
    for axis in range(count):
        length, gap = layer.kernel_size[axis], layer.dilation[axis]
        x = x.unfold(2 + axis, (length - 1) * gap + 1, steps[axis])[..., ::gap]
    if layer.transposed:
        x = x.flip(tuple(range(-count, 0)))
    x = x.movedim(1, 1 + count)  # [B, O1, ..., C, k1, ...]
    return x.unflatten(1 + count, (layer.groups, -1))


def _apart(layer: nn.modules.conv._ConvNd, x: Tensor, size: torch.Size) -> Tensor:
    """Return an input with the zeros around and between its elements at which it is not."""
    count = len(layer.kernel_size)
    sizes = zip(x.shape[2:], layer.stride, strict=True)
    apart = [(length - 1) * step + 1 for length, step in sizes]
    wide = x.new_zeros((*x.shape[:2], *apart))
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in layer.stride))] = x
    pads: list[int] = []
    for axis in reversed(range(count)):
        reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis]
        before = reach - cast(int, layer.padding[axis])
        pads += [before, size[axis] + reach - before - apart[axis]]
    return F.pad(wide, pads)


def of_positions(layer: QuantLayer, y: Tensor) -> Tensor:
    """Return an output in the order of the patches, [B, O1, ..., C]."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return y
    count = len(layer.kernel_size)
    y = y.unsqueeze(0) if y.ndim == count + 1 else y
    return y.movedim(1, -1)


def taken(view: Tensor, places: Tensor, axes: int) -> Tensor:
    """Return some of what lies along the first axes of a view, [P, ...].

    Args:
        view: [B, O1, ..., ...].
        places: int64 [P], into the flattened first axes.
        axes: how many those are.
    """
    return view[torch.unravel_index(places, view.shape[:axes])]


def product(x: Tensor, rows: Tensor) -> Tensor:
    """Return what rows make of patches, [P, C].

    Args:
        x: [P, groups, K].
        rows: [C, in / groups, ...], of K elements each; the first C / groups belong to the first
            group.
    """
    groups = x.shape[1]
    flat = rows.reshape(groups, len(rows) // groups, -1)
    if groups == 1:
        return x[:, 0] @ flat[0].T
    return torch.einsum("pgk,gck->pgc", x, flat).flatten(1)


def gradient_of_rows(grad: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient with respect to rows, of their shape.

    Args:
        grad: with respect to the product, [P, C].
        x: [P, groups, K].
        shape: of the rows, [C, in / groups, ...].
    """
    groups = x.shape[1]
    if groups == 1:
        return (grad.T @ x[:, 0]).reshape(shape)
    apart = grad.unflatten(1, (groups, -1))
    return torch.einsum("pgc,pgk->gck", apart, x).reshape(shape)

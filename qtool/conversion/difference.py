"""How far the integer form of a layer, or of a site, may be from the fake-quantized one."""

import torch
from torch import Tensor

from qtool.errors import ConversionError
from qtool.integer.at_site import AtSite
from qtool.integer.depthwise import IntegerNorm
from qtool.integer.joins import GATE_LEVELS
from qtool.integer.layers import IntegerLayer
from qtool.integer.site_specs import SiteGrid, round_to_values
from qtool.numerics.on_grid import OnGrid
from qtool.quantizers.door.finite import not_finite

TOLERANCE = 1e-4  # of a layer's largest output: float32 sums of some thousand products
MOST = 0.02  # likewise, where a model computes in bfloat16 inside
LAST_BIT = 2.0**-24  # of float32, as a share of a value
OF_JOINS = 32 * LAST_BIT  # of the largest operand or result: float32 computes a few steps
NEAR = 1e-3  # of a step: a sigmoid that lies so near to a threshold may get either code


def difference_of(
    layer: IntegerLayer, expected: Tensor, x: Tensor, given: Tensor
) -> tuple[float, Tensor]:
    """Return the largest difference of two outputs, as a share of the largest value, and the room.

    The room is what arithmetic and an int32 bias may move the output by, float64, its shape.

    Args:
        layer: that gave `given`.
        expected: what the fake-quantized layer gave.
        x: what both were given.
        given: what the integer layer gave.

    Raises:
        ConversionError: If they differ by more than arithmetic explains, or are not finite.
    """
    name = layer.spec.name
    if not expected.numel() and expected.shape == given.shape:
        return 0.0, torch.zeros_like(expected, dtype=torch.float64)
    for what, tensor in (("fake-quantized", expected), ("integer", given)):
        if not bool(torch.isfinite(tensor).all()):
            if not bool(torch.isfinite(x).all()):
                raise ConversionError(f"{name}: its input {not_finite(x)}")
            raise ConversionError(f"{name}: the {what} layer's output {not_finite(tensor)}")
    if expected.shape != given.shape:
        raise ConversionError(
            f"{name}: the integer layer's output has the shape {list(given.shape)}, the "
            f"fake-quantized one's {list(expected.shape)}"
        )
    shorter = max(1.0, torch.finfo(expected.dtype).eps / torch.finfo(torch.float32).eps)
    expected, given = expected.double(), given.double()
    largest = float(expected.abs().max())
    difference = (given - expected).abs()
    room = torch.full_like(difference, min(TOLERANCE * shorter, MOST) * largest + 1e-12)
    if layer.spec.bias == "int32":
        # an int32 bias is off by at most half of its own step
        room = room + layer.channelwise(layer.bias_scale.double()) / 2
    if not bool((difference <= room).all()):
        # where large products cancel, float32 itself is off by more than a share of what is left
        room = room + _rounding_of_sums(layer, x) * shorter
    if not bool((difference <= room).all()):
        raise ConversionError(
            f"{name}: the integer layer's output differs by {float(difference.max()):.3g} from "
            f"the fake-quantized one, whose largest value is {largest:.3g}"
        )
    return (float(difference.max()) / largest if largest else 0.0), room


def _rounding_of_sums(layer: IntegerLayer, x: Tensor) -> Tensor:
    """Return what rounding in float32 may do to a layer's sums of products, shaped as its output.

    Both factors of K products are rounded, and their sums on the way: sqrt(K) in the mean.
    """
    given, weight = layer.input_on_grid, layer.real_weight()
    x_hat = x.float() if given is None else given.values(given.codes(x.float()))
    bias = layer.real_bias()
    sums = layer.operate(x_hat.abs(), weight.abs(), None if bias is None else bias.abs())
    return sums.double() * (LAST_BIT * (8 + layer.layout.rows(weight)[0].numel() ** 0.5))


def share_off(
    ends: SiteGrid,
    grid: OnGrid,
    raw: Tensor,
    rounded: Tensor,
    given: Tensor,
    *,
    room: Tensor | float,
) -> float:
    """Return the share of values that two models round to different levels.

    Each must be next to what is rounded, or beyond a threshold that lies within `room`.

    Args:
        ends: where the grid ends.
        grid: of the site.
        raw: what the fake-quantized model rounds there.
        rounded: what it makes of it.
        given: what the integer model gives.
        room: what arithmetic and int32 biases may move `raw` by.

    Raises:
        ConversionError: If a value is further off, or not finite; names the site.
    """
    site = ends.site
    if not raw.numel() and given.shape == rounded.shape:
        return 0.0
    if not bool(torch.isfinite(raw).all()):
        raise ConversionError(f"{site}: what is rounded there {not_finite(raw)}")
    if given.shape != rounded.shape:
        raise ConversionError(
            f"{site}: the integer model's value has the shape {list(given.shape)}, the "
            f"fake-quantized one's {list(rounded.shape)}"
        )

    def nearest(x: Tensor) -> Tensor:
        steps = x.float() / grid.step
        return round_to_values(steps, grid, top=ends.top, bottom=ends.bottom)

    half = grid.step / 2
    low, high = nearest(raw - room) - half, nearest(raw + room) + half
    for what, values in (("integer", given), ("fake-quantized", rounded)):
        outside = (values < low) | (values > high)
        if bool(outside.any()):
            worst = float((given - rounded).abs().max() / grid.step)
            raise ConversionError(
                f"{site}: the {what} model rounds {int(outside.sum())} of {raw.numel()} values "
                f"to levels that are not next to them; the two differ by {worst:.3g} steps"
            )
    return float(((given - nearest(raw)).abs() > half).float().mean())


def room_of(join: AtSite, *operands: Tensor) -> Tensor | float:
    """Return what a join's arithmetic may move its result by, beside its largest value's share."""
    room = OF_JOINS * sum(float(x.abs().max()) for x in operands if x.numel())
    if isinstance(join, IntegerNorm):
        step = (join.input_scales[0] * join.weight_scale).reshape(-1, *[1] * (operands[0].ndim - 2))
        shift = (join.bias.float().abs() * step.flatten()).max()
        return room + step / 2 + OF_JOINS * shift
    if join.spec.kind == "silu":
        x = operands[0].float()
        near = ((torch.sigmoid(x) * GATE_LEVELS) % 1 - 0.5).abs() < NEAR
        return room + near * x.abs() / GATE_LEVELS
    return room

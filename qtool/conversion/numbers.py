"""Numbers that no integer model can be made of, named before anything is compared."""

import torch
from torch import nn

from qtool.conversion.parts import Parts
from qtool.errors import ConversionError
from qtool.numerics.ranges import SMALLEST_SCALE
from qtool.quantizers.door.finite import bad_numbers, listed, not_finite
from qtool.quantizers.fake_quantize import FakeQuantize

LEAST = 1e-4 * SMALLEST_SCALE  # training holds learned scales above the one, or throws them below 0


def refuse_bad_numbers(model: nn.Module) -> None:
    """Check every weight, bias, statistic, scale and zero point of a prepared model.

    A learned scale that its last update threw below zero is no fault: it counts as the smallest.

    Raises:
        ConversionError: Names each tensor that cannot be converted, and what it holds.
    """
    found = bad_numbers(model)
    for name, quantizer in model.named_modules():
        if isinstance(quantizer, FakeQuantize):
            found += [f"{name}.{fault}" for fault in _faults(quantizer)]
    if found:
        raise ConversionError(
            f"{listed(found)}; there are no integers for that: train or "
            f"calibrate again, from values that are finite"
        )


def _faults(quantizer: FakeQuantize) -> list[str]:
    """Return what is wrong with a quantizer's scale and zero point beside what is not finite."""
    scale, found = quantizer.scale.detach(), list[str]()
    tiny = (scale >= torch.finfo(scale.dtype).tiny) & (scale < LEAST)  # below: named already
    if bool(tiny.any()):
        found.append(f"scale holds {float(scale[tiny].max()):.4g}; it must be at least {LEAST:g}")
    grid, zero = quantizer.grid, float(quantizer.used_zero_point)
    if grid is not None and zero - zero == 0:  # finite
        low, high = (grid.qmin, grid.qmax) if grid.kind == "asymmetric" else (0, 0)
        if not low <= zero <= high:
            allowed = f"an integer from {low} to {high}" if low < high else "0"
            found.append(f"zero_point is {zero:g}; it must be {allowed}")
    return found


def refuse_bad_parts(parts: Parts) -> None:
    """Check what a layer became once its batch norm was folded in.

    Raises:
        ConversionError: Names the layer, and what is not finite.
    """
    norm = parts.spec.batch_norm
    behind = "" if norm is None else f" with {norm} folded in"
    for what, values in (("scale", parts.scale.float()), ("bias", parts.bias)):
        if values is not None and not bool(torch.isfinite(values.float()).all()):
            raise ConversionError(f"{parts.spec.name}: its {what}{behind} {not_finite(values)}")

"""Scales that a recipe gives, against the values that they are for.

Where all values round to 0, or lie far beyond the grid, nothing of them is left and no gradient
says so. The first values show it, before anything is trained.
"""

import torch
from torch import Tensor

from qtool.errors import ModelError
from qtool.numerics.ranges import absmax
from qtool.quantizers.fake_quantize import FakeQuantize

BEYOND = 2.0  # times the end of the grid
FEW = 2  # distinct sizes, which saturation leaves as distinct as before


@torch.no_grad()
def refuse_useless_scale(quantizer: FakeQuantize, rows: Tensor) -> None:
    """Check that a scale that does not depend on the values leaves something of them.

    Args:
        quantizer: whose scale is set; one of two levels, or without a number of the recipe's for
            its scale, passes.
        rows: its values, [scales, K].

    Raises:
        ModelError: If every value becomes 0, or lies beyond twice the end of the grid.
    """
    grid = quantizer.known_grid
    if "scale" not in quantizer.settings.range.params or grid.bits == 1:
        return
    values = rows.clamp_min(0) if grid.kind == "unsigned" else rows
    sizes = values.abs()
    if not sizes.any():
        return
    scale = quantizer.used_scale.reshape(-1, 1)
    steps = sizes / scale
    smallest = torch.where(sizes > 0, steps, torch.inf).amin()
    rounds_up = quantizer.deployed_rounding == "ceil"
    if not grid.offset and not rounds_up and bool(steps.amax() <= 0.5):
        why = "makes every value 0"
    elif smallest > BEYOND * grid.qmax and sizes.unique().numel() > FEW + 1:
        why = "saturates every value"
    else:
        return
    largest, fitting = float(sizes.amax()), float(absmax(rows.reshape(1, -1), grid))
    place = f"{quantizer.place}: " if quantizer.place else ""
    raise ModelError(
        f"{place}range {quantizer.settings.range} {why}: the largest is {largest:.3g} and a step "
        f"{float(scale.amax()):.3g}; a scale of {fitting:.2g} would reach it"
    )

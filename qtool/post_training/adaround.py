"""AdaRound: the rounding of a layer's weight, learned so that what follows it changes least.

Asymmetric reconstruction: the layer reads what the quantized network so far gives it, and is to
give what it gives in the float network, behind the norm and the ReLU that follow it. Each iteration
takes other places of the calibration images, of which each is a row of a linear layer.

Reference: Nagel et al., 2020, arXiv:2004.10568.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qtool.numerics.on_grid import OnGrid
from qtool.post_training.following import Following
from qtool.post_training.patches import gradient_of_rows, product
from qtool.post_training.seen import Patches
from qtool.post_training.soft_rounding import SoftRows, beta_at, rectified_sigmoid


@dataclass(frozen=True)
class Learning:
    """How long rounding is learned, and how.

    Attributes:
        iterations: of Adam.
        places: of the calibration images in each, for a layer by itself.
        images: in each, for a block.
        rate: of Adam, for V.
        weight: of the regularizer, whose sum is as many times the loss of rounding to nearest where
            nothing is decided: so it does not depend on widths, sizes and units.
    """

    iterations: int = 1000
    places: int = 512
    images: int = 32
    rate: float = 0.05
    weight: float = 300.0


def learned_codes(
    rows: Tensor,
    on_grid: OnGrid,
    seen: Patches,
    follows: Following,
    *,
    how: Learning,
    generator: torch.Generator,
    each: Callable[[float], None] = lambda progress: None,
) -> Tensor:
    """Return the codes of rows whose rounding was learned, shaped as they are.

    Args:
        rows: float32 [C, in / groups, ...].
        on_grid: of them.
        seen: what the layer reads, and should make.
        follows: what comes of that.
        how: to learn.
        generator: on the CPU, draws the places of each iteration.
        each: is told of the share of iterations done.
    """
    soft = SoftRows.of(rows, on_grid)
    optimizer = torch.optim.Adam([soft.v], lr=how.rate, fused=True)
    target = follows(seen.outputs)
    unit = float(target.var(0, unbiased=False).mean().clamp_min(1e-30))
    places = min(how.places, len(target))
    nearest = follows(seen.made_by(on_grid.values(on_grid.codes(rows))))
    loss = float((nearest - target).square().sum(1).mean()) / unit
    weight = how.weight * loss / rows.numel()
    for step in range(how.iterations):
        progress = step / how.iterations
        chosen = torch.randint(len(target), (places,), generator=generator).to(target.device)
        x, h = seen.inputs[chosen], rectified_sigmoid(soft.v.detach())
        made = follows(product(x, soft.rows(h)) + seen.bias)
        grad = follows.gradient((made - target[chosen]).mul_(2 / (places * unit)), made)
        of_rows = gradient_of_rows(grad, x, rows.shape)
        soft.v.grad = soft.gradient(of_rows, h, weight=weight, beta=beta_at(progress))
        optimizer.step()
        each((step + 1) / how.iterations)
    return soft.codes()

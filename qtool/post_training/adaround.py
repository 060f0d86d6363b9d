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
from qtool.post_training.patches import product
from qtool.post_training.seen import Patches
from qtool.post_training.soft_rounding import SoftRows, beta_at, regularizer


@dataclass(frozen=True)
class Learning:
    """How long rounding is learned, and how.

    Attributes:
        iterations: of Adam.
        places: of the calibration images in each, for a layer by itself.
        images: in each, for a block.
        rate: of Adam, for V.
        weight: of the regularizer beside a loss whose target has variance 1 in each channel.
    """

    iterations: int = 2000
    places: int = 512
    images: int = 32
    rate: float = 0.01
    weight: float = 0.01


def learned_codes(
    rows: Tensor,
    on_grid: OnGrid,
    seen: Patches,
    follows: Following,
    how: Learning,
    generator: torch.Generator,
    *,
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
    optimizer = torch.optim.Adam([soft.v], lr=how.rate)
    target = follows(seen.outputs)
    unit = target.var(0, unbiased=False).mean().clamp_min(1e-30)
    places = min(how.places, len(target))
    for step in range(how.iterations):
        chosen = torch.randint(len(target), (places,), generator=generator).to(target.device)
        h = soft.h()
        made = follows(product(seen.inputs[chosen], soft.rows(h)) + seen.bias)
        loss = (made - target[chosen]).square().sum(1).mean() / unit
        beta = beta_at(step / how.iterations)
        if beta is not None:
            loss = loss + how.weight * regularizer(h, beta)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        each((step + 1) / how.iterations)
    return soft.codes()

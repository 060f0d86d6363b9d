"""Alpha and M of a weight in its own units: what makes its training a straight-through one.

M acts on the steps u = w / s + o, so that here w -> s (M(w / s + o) - o), with o = 1/2 on mid_rise
and 0 elsewhere; outside the grid's levels M is w itself.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import quantize
from qtool.numerics.straight_through_map import StraightThroughMap, straight_through_map
from qtool.settings.tensors import WeightQuantization


@dataclass(frozen=True)
class WeightMap:
    """Alpha and M of a weight that is quantized by `settings`."""

    settings: WeightQuantization

    @property
    def estimator(self) -> str:
        """Return the estimator as a recipe would write it."""
        return str(self.settings.estimator)

    @cached_property
    def scheduled(self) -> str:
        """Return which parameter of the estimator is a schedule, or ""."""
        params = self.settings.estimator.params if self.settings.estimator else {}
        return next((key for key, value in params.items() if isinstance(value, dict)), "")

    @cached_property
    def in_steps(self) -> StraightThroughMap:
        """Return alpha and M in steps, on the weight's own grid.

        Raises:
            ValueError: If a parameter of the estimator is a schedule, or there is no estimator.
        """
        chosen, grid = self.settings.estimator, self.settings.integer_grid
        if chosen is None or self.scheduled:
            raise ValueError("only an estimator that stays as it is has one M")
        return straight_through_map(chosen.name, grid.qmin, grid.qmax, **chosen.params)

    def outside(self, *, adaptive: bool) -> str:
        """Say why the estimator lies outside the theorem's class, or "".

        Judged between the outermost levels: beyond them straight_through itself stops gradients.
        With an adaptive optimizer it need not be cyclical.
        """
        if self.scheduled:
            return "" if adaptive else f"its {self.scheduled} moves in training, and M with it"
        found = self.in_steps
        if not math.isnan(found.alpha):
            return ""
        return "" if adaptive and "not cyclical" in found.reason else found.reason

    @property
    def passes_beyond(self) -> bool:
        """Tell whether gradients pass outside the grid, where straight_through stops them."""
        chosen, grid = self.settings.estimator, self.settings.integer_grid
        if chosen is None:
            return True
        fixed = {k: v for k, v in chosen.params.items() if not isinstance(v, dict)}
        away = torch.linspace(0.01, 2.0, 200)
        u = torch.cat([grid.qmin - away, grid.qmax + away])
        estimator = ESTIMATORS.build(chosen.name, **fixed)
        passed = estimator(torch.ones_like(u), u, float(grid.qmin), float(grid.qmax))
        return bool((passed != 0).any())

    def map(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return M(w), of the weight's shape and dtype; its codes are the weight's."""
        grid = self.settings.integer_grid
        wide, step = weight.detach().double(), scale.detach().double()
        mapped = (self.in_steps.map(wide / step + grid.offset) - grid.offset) * step
        mapped = mapped.to(weight.dtype)
        before, after = (quantize(w, scale, 0, grid) for w in (weight.detach(), mapped))
        # in the weight's own dtype M may round across a threshold that it comes close to
        return torch.where(before == after, mapped, weight.detach())

    def largest_level(self, scale: Tensor) -> float:
        """Return mx, the real value of the outermost level: s (high - 1/2) on mid_rise, s high."""
        grid = self.settings.integer_grid
        return float(scale.max()) * (grid.qmax - grid.offset)

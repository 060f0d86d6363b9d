"""Fake quantization of inputs: grid and scale from the values that are seen."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.numerics.estimators import Bound
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.ranges import start_of_zeros
from qtool.numerics.roundings import ROUNDINGS, additive_noise
from qtool.numerics.scales import SMALLEST_SCALE, min_to_zero_point
from qtool.numerics.steps import to_float32
from qtool.numerics.weighed import rounding_error
from qtool.quantizers.door.finite import refuse_bad_values
from qtool.quantizers.door.given import refuse_useless_scale
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.observers import Observer
from qtool.quantizers.rounding_function import by_numbers
from qtool.quantizers.scale_gradient import Backward
from qtool.quantizers.state import QuantizerState
from qtool.settings.tensors import ActivationQuantization
from qtool.world.passes import Share, this_pass
from qtool.world.world import ALONE, World

FLOOR = to_float32(SMALLEST_SCALE)
# the share of the error so far that a grid must stay below: full of unsigned's, and so on
BETTER: dict[Kind, float] = {"full": 0.9, "mid_rise": 0.9, "asymmetric": 0.5}


class ActivationQuantizer(FakeQuantize):
    """Fake quantization of a layer's input: one scale, set from the first values it sees.

    Attributes:
        observed: float32 [2], the smallest and largest value, averaged over batches where the
            range follows them.
        offset: float32 [], what the grid's lowest level means where that is learned (LSQ+, Bhalgat
            et al., 2020, arXiv:2004.09576), else None; the zero point is round(-offset / s).
        observer: sees the values, until the range is set and, where it follows them, after that.
        given: the scale is a constant, which no values change.
    """

    observed: Tensor

    def __init__(self, settings: ActivationQuantization) -> None:
        self.decides_grid, self.grids = settings.grid == "auto", settings.grids()
        super().__init__(settings, None if self.decides_grid else self.grids[0])
        self.given = False
        learns_offset = self.learns and settings.grid == "asymmetric"
        self.offset = nn.Parameter(torch.zeros(())) if learns_offset else None
        self.register_buffer("observed", torch.zeros(2))
        self.follows = self.facts.follows
        decay, every = settings.range_value("decay", 0.0), settings.range_value("every", 1)
        self.observer = Observer(follows=self.follows, decay=decay, every=every)

    @torch.no_grad()
    def settle(self) -> None:
        """Set grid, scale and zero point from what was watched.

        Raises:
            ModelError: If values are not finite, or a given scale leaves nothing of them.
        """
        rows, weights = self.observer.take()
        refuse_bad_values(rows, f"{self.place or 'an input'}: what it was shown")
        if self.decides_grid:
            self.grid = self._choose_grid(rows, weights)
            self.decides_grid = not rows.any()  # zeros tell nothing: what comes next may
        if self.follows:
            rows, weights = self.observed.unsqueeze(0), None
        self._fit(rows, weights)
        start = start_of_zeros(self.rule, self.known_grid, None)
        self.scale.copy_(torch.where(self.scale <= SMALLEST_SCALE, start, self.scale))
        refuse_useless_scale(self, rows)
        self.ready = True

    def _choose_grid(self, rows: Tensor, weights: Tensor | None) -> IntegerGrid:
        """Return the grid of the smallest error on values [1, K], at the scale of the range.

        One that is less simple must be better by `BETTER`: an error by chance chooses nothing, and
        a runtime has the least to do for unsigned codes, and for a zero point more than for none.
        """
        best, *others = self.grids
        if rows.amin() >= 0:  # of the same width, unsigned has the most levels there
            return best
        least = self._error(best, rows, weights)
        for grid in others:
            error = self._error(grid, rows, weights)
            if error < BETTER[grid.kind] * least:
                best, least = grid, error
        return best

    def _error(self, grid: IntegerGrid, rows: Tensor, weights: Tensor | None) -> float:
        """Return the mean squared error of values [1, K] on a grid that is fitted to them."""
        scale, zero_point = self._fitted(grid, rows, weights)
        return float(rounding_error(rows, scale, grid, weights, zero_point))

    def _fitted(
        self, grid: IntegerGrid, rows: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return scale [1] and zero point [1] of a grid for values [1, K] by the range rule."""
        weighs = weights is not None and self.settings.of_range.weighs
        scale = self.rule(rows, grid, weights) if weighs else self.rule(rows, grid)
        if grid.kind != "asymmetric":
            return scale, torch.zeros_like(scale)
        return scale, min_to_zero_point(rows.amin(1).clamp_max(0), scale, grid)

    @torch.no_grad()
    def _fit(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Set scale and zero point from values [1, K] by the range rule; see `Observer.take`."""
        scale, zero_point = self._fitted(self.known_grid, rows, weights)
        self.scale.copy_(scale[0])
        self.zero_point.copy_(zero_point[0])
        if self.offset is not None:
            self.offset.copy_(rows.amin().clamp_max(0))

    def forward(
        self, x: Tensor, *, rectify: bool = False, top: float | None = None, member: str = ""
    ) -> Tensor:
        """Return the fake-quantized input, same shape and dtype.

        Args:
            x: the input, or where `rectify` what its ReLU, or its clip to 0..top, is taken of.
            rectify: quantize the ReLU of x; the rounding does its work wherever it can.
            top: quantize clip(x, 0, top) instead. That saturates at round(top / s), as rounding
                what is clipped would; values above it are the estimator's, as all outside are.
            member: which of the values that share the quantizer this is.
        """
        if rectify and not self._rectifies:
            x, rectify = F.relu(x) if top is None else torch.clamp(x, 0, top), False
        if self.passes_on:
            return x
        if self.observer.watching:
            if not self.given:
                self.observer.watch(x, self.observed, member)
            return x
        if not self.ready:
            world = this_pass().world if self.training else ALONE
            self.observer.watch(world.all_rows(x), self.observed, member)
            if self.waits(member):
                return x
            self.settle()
            self._agree(world)
        elif self.follows and self.training and self.observer.looks_now():
            self.observer.follow(x.detach(), self.observed, rectify=rectify, top=top)
            self._fit(self.observed.unsqueeze(0))
        if self.offset is not None:
            self.place_zero_point()
        if not rectify:
            return self.round_to_grid(x, self.offset)
        top = top if self._may_exceed else None
        return self.round_to_grid(x, bounds=self._clipped_bounds(top), top=top)

    def take_share(self, share: Share) -> None:
        """Note which part of a batch the passes see that come now."""
        self.share = self.observer.share = share

    def _backward(self, values: int, top: float | None = None) -> Backward:
        return super()._backward(values * self.share.batch // self.share.rows, top)

    def _agree(self, world: World) -> None:
        """Take over what the first process has made of the same values, to the last bit."""
        if world.size == 1 or self.grid is None:
            return
        kinds = [grid.kind for grid in self.grids]
        chosen = self.scale.new_tensor(float(kinds.index(self.grid.kind)))
        tensors = [self.scale, self.zero_point, self.observed, chosen]
        world.copy_from_first(tensors if self.offset is None else [*tensors, self.offset])
        self.grid = self.grids[int(chosen)]

    def waits(self, member: str) -> bool:
        """Tell, of a range that is not set yet, whether values of other members are to come."""
        del member
        return False

    @property
    def _rectifies(self) -> bool:
        """Tell whether rounding is ReLU, too: it saturates at zero, and keeps nothing below."""
        if self.observer.watching or self.passes_on or not self.ready or self.blend is not None:
            return False
        rounds = self.rounding is not additive_noise and self.offset is None
        return rounds and self.known_grid.kind != "mid_rise"

    def _clipped_bounds(self, top: float | None) -> tuple[Bound, Bound]:
        """Return low and high in steps of a grid that ends at 0, and at round(top / s)."""
        _, high = self.bounds()
        if isinstance(high, float):
            if top is None:
                return 0.0, high
            if by_numbers(self.scale):
                return 0.0, min(high, self._steps_to(top))
        scale = self.used_scale
        if top is None:
            return torch.zeros_like(scale), high
        end = ROUNDINGS[self.deployed_rounding](torch.full_like(scale, top).div_(scale))
        if isinstance(high, Tensor):
            return torch.zeros_like(scale), torch.minimum(end, high)
        return torch.zeros_like(scale), end.clamp_(max=high)

    def _steps_to(self, top: float) -> float:
        """Return round(top / s), the quotient rounded to float32 first, as that of values is."""
        scale = self.scale.item()
        scale = FLOOR if scale < FLOOR else scale  # one that is not a number stays so
        steps = to_float32(to_float32(top) / scale)
        if not math.isfinite(steps):
            return steps
        return float(math.ceil(steps) if self.deployed_rounding == "ceil" else round(steps))

    @property
    def _may_exceed(self) -> bool:
        """Tell whether the grid may reach beyond values that its range was set from."""
        return self.learns or self.facts.given or self.facts.refines

    @torch.no_grad()
    def place_zero_point(self) -> None:
        """Put the zero point where a learned offset and scale have moved to."""
        if self.offset is not None:
            placed = min_to_zero_point(self.offset, self.used_scale, self.known_grid)
            self.zero_point.copy_(placed)

    def _state(self) -> QuantizerState:
        return {**super()._state(), "steps": self.observer.steps}

    def _take_state(self, state: QuantizerState) -> None:
        super()._take_state(state)
        self.decides_grid = self.grid is None
        self.observer.steps = state["steps"]

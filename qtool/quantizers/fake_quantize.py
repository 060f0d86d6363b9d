"""Fake quantization: integer values, float storage, so that training can go on.

A FakeQuantize holds the scale of one tensor. Its forward is always the same hard rounding,

    x_hat = s * (clamp(round(x / s + o), low, high) - o),   low = qmin - z, high = qmax - z,

in float32 whatever the type of x; its backward is the chosen estimator. With a blend it is
(1 - alpha) x + alpha x_hat instead, with the gradient through the first term only or, where an
estimator is chosen too, through the second by it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Self, cast

import torch
from torch import Tensor, nn

from qtool.graph.swap import Part
from qtool.numerics.estimators import ESTIMATORS, Bound, Estimator, straight_through
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS, additive_noise, deployed
from qtool.numerics.scales import SMALLEST_SCALE, above_floor
from qtool.numerics.schedules import SCHEDULES, Schedule
from qtool.quantizers.rounding_function import RoundToGrid, with_noise
from qtool.quantizers.scale_gradient import Backward
from qtool.quantizers.softness import softness_of, teach, within
from qtool.quantizers.state import QuantizerState, decode, encode
from qtool.settings.choices import blend_schedule
from qtool.settings.section import Choice
from qtool.settings.tensors import ActivationQuantization, WeightQuantization
from qtool.settings.user_estimators import is_not_loaded, load_by_absolute_paths, no_gradient
from qtool.settings.user_parts import is_users
from qtool.world.passes import EVERYTHING, Share


class FakeQuantize(Part):
    """Round a tensor to its grid and scale it back.

    Attributes:
        scale: float32 step size; [] per tensor, [C, 1, ...] per output channel. A Parameter where
            the range is learned, which may be pushed below 0: `used_scale` is computed with.
        zero_point: float32 integer that represents 0.0, []; 0 but on the asymmetric grid. An
            average of models may leave it between two integers: see `used_zero_point`.
        alpha: float32 [], the share of x_hat in a blend; 1 without one.
        softness: float32 [], what an estimator learns of its shape; None where it learns nothing.
        grid: the integers allowed; None until the first values decide an `auto` grid.
        compiles: use compiled kernels; `compile_kernels` sets it.
        place: its name in the model, for messages; `name_quantizers` sets it.
        ahead: what is due once per training step is done before the forward pass, not in it.
        overwritten: the model computes in place with what was rounded, as `y += x` does.
        unkept: none of those who read what was rounded keeps it for its own backward pass.
        share: which part of a batch the passes see that are made now.
        passes_on: values go through as they are; `control.in_float` sets it.
    """

    maker = "qtool.prepare"

    scale: Tensor
    zero_point: Tensor
    alpha: Tensor
    softness: nn.Parameter | None
    place: str = ""
    overwritten: bool = False
    unkept: bool = False
    passes_on: bool = False
    share: Share = EVERYTHING

    def __init__(
        self, settings: WeightQuantization | ActivationQuantization, grid: IntegerGrid | None
    ) -> None:
        super().__init__()
        self.settings, self.bits, self.grid = settings, settings.bits, grid
        self.ready, self.progress, self.compiles, self.ahead = False, 0.0, False, False
        self.rule = RANGES.build(settings.range.name, **settings.range.params)
        self.facts = settings.of_range
        self.learns = self.facts.learns is not None
        self.blend: Schedule | None = None
        self.last_phase = 0.0
        self.estimator: Estimator = straight_through
        self.moving: dict[str, Schedule] = {}
        self.moved: dict[str, Tensor] = {}  # their values, where those are kept in tensors
        self.rounding = ROUNDINGS[settings.rounding]
        self.deployed_rounding = deployed(settings.rounding)
        if settings.blend is not None:
            self.blend, self.last_phase = blend_schedule(settings.blend)
        if settings.estimator is not None:
            self._choose_estimator(settings.estimator)
        if self.learns:
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("alpha", torch.tensor(1.0 if self.blend is None else self.blend(0.0)))
        self.register_parameter("softness", softness_of(settings.estimator))

    def _choose_estimator(self, choice: Choice) -> None:
        """Take an estimator, and apart from it those of its parameters that are schedules."""
        if is_not_loaded(choice.name):
            self.estimator = partial(no_gradient, estimator=choice.name)
            return
        params = choice.params.items()
        fixed = {key: value for key, value in params if not isinstance(value, dict)}
        for key, value in params:
            if isinstance(value, dict):
                self.moving[key] = SCHEDULES.build(**value)
        now = {key: schedule(self.progress) for key, schedule in self.moving.items()}
        self.estimator = ESTIMATORS.build(choice.name, **fixed, **now)

    def _set_moving(self) -> None:
        """Give the estimator the values that its moving parameters have at this progress."""
        now = {key: schedule(self.progress) for key, schedule in self.moving.items()}
        for key, value in self.moved.items():
            value.fill_(now[key])
        if now and not self.moved:
            base = self.estimator
            fixed = base.keywords if isinstance(base, partial) else {}
            function = base.func if isinstance(base, partial) else base
            self.estimator = partial(function, **{**fixed, **now})

    def move_in_tensors(self) -> None:
        """Keep the estimator's moving parameters in tensors [], beside the scale."""
        if self.moving and not self.moved and isinstance(self.estimator, partial):
            now, device = self.estimator.keywords, self.scale.device
            self._take_moved({k: torch.tensor(now[k], device=device) for k in self.moving})

    def _take_moved(self, values: dict[str, Tensor]) -> None:
        """Let the estimator read its moving parameters from these tensors."""
        self.moved = values
        if isinstance(made := self.estimator, partial):
            self.estimator = partial(made.func, **{**made.keywords, **values})

    @property
    def gradient(self) -> str:
        """Return what stands in for the gradient of rounding: an estimator, a blend, or both."""
        chosen = self.settings
        said = [str(chosen.estimator)] if chosen.estimator else []
        return ", ".join([*said, f"blend {chosen.blend}"] if chosen.blend else said)

    @property
    def known_grid(self) -> IntegerGrid:
        """Return the grid.

        Raises:
            RuntimeError: If no values were seen yet that decide it.
        """
        if self.grid is None:
            raise RuntimeError("the grid is not known before the first forward pass")
        return self.grid

    @property
    def used_scale(self) -> Tensor:
        """Return the scale that is computed with, detached: the stored one, but at its smallest."""
        return above_floor(self.scale.detach())

    @property
    def used_zero_point(self) -> Tensor:
        """Return the zero point that is computed with, []: the integer next to the stored one."""
        moves = self.grid is not None and self.grid.kind == "asymmetric"
        return self.zero_point.round() if moves else self.zero_point

    @property
    def on_grid(self) -> OnGrid:
        """Return grid, scale, zero point and the rounding that is deployed, as they are now.

        Raises:
            RuntimeError: If no values were seen yet that decide the grid.
        """
        rounding = ROUNDINGS[self.deployed_rounding]
        return OnGrid.by_step(self.known_grid, self.used_scale, self.used_zero_point, rounding)

    def set_progress(self, progress: float) -> None:
        """Move the blend and the estimator to `progress`, the share of training done."""
        self.progress = progress
        self._set_moving()
        if self.blend is not None:
            self.alpha.fill_(self.blend(progress))

    def bounds(self) -> tuple[Bound, Bound]:
        """Return low and high in steps: numbers, or tensors [] where there is a zero point."""
        grid = self.known_grid
        if grid.kind == "asymmetric":
            zero_point = self.used_zero_point
            return grid.qmin - zero_point, grid.qmax - zero_point
        return float(grid.qmin), float(grid.qmax)

    def round_to_grid(
        self,
        x: Tensor,
        shift: Tensor | None = None,
        *,
        trains: bool = True,
        bounds: tuple[Bound, Bound] | None = None,
        top: float | None = None,
    ) -> Tensor:
        """Return x_hat, or the blend of x and x_hat; same shape and dtype as x.

        Args:
            x: real values.
            shift: a learned offset, a parameter [], which the zero point was taken from.
            trains: a learned scale gets a gradient.
            bounds: low and high in steps, where they are not those of the grid.
            top: what the values are clipped at, where `bounds` see to that.
        """
        grid = self.known_grid
        low, high = self.bounds() if bounds is None else bounds
        if self.learns and not self.ahead and torch.is_grad_enabled():
            # from far below 0 it would not come back soon
            self.scale.detach().clamp_(min=SMALLEST_SCALE)
        scale = self.scale if trains else self.scale.detach()
        rounding = self.rounding if self.training else ROUNDINGS[self.deployed_rounding]
        how = self._backward(max(1, x.numel() // scale.numel()), top)
        if rounding is additive_noise:
            return with_noise(x, above_floor(scale.clone()), (low, high), grid.offset, how.factor)
        if self.blend is not None:  # excludes a learned scale
            own = x.detach() if self.settings.estimator is None else x
            x_hat = RoundToGrid.apply(own, scale, None, low, high, grid.offset, rounding, how)
            alpha = self.alpha.clone()  # kept for a backward pass, before which it may move
            return torch.mul(x, 1 - alpha).add_(x_hat * alpha)
        x_hat = cast(
            Tensor,
            RoundToGrid.apply(x, scale, shift, low, high, grid.offset, rounding, how),
        )
        if self.softness is None or not (trains and torch.is_grad_enabled()):
            return x_hat
        factor = how.factor * scale.numel() ** -0.5
        taught = x_hat, x, scale.detach()
        return teach(self.softness, *taught, bounds=(low, high), offset=grid.offset, factor=factor)

    def _backward(self, values: int, top: float | None = None) -> Backward:
        """Return how gradients come back where `values` elements share a scale."""
        grid, estimator = self.known_grid, self.estimator
        compiles = self.compiles and not self.moving and self.softness is None  # they hold numbers
        if self.softness is not None:
            learned = {"alpha": within(self.softness.detach())}
            estimator = partial(estimator, **learned)
        ends = None if top is None or not self.learns else (top, float(grid.qmax))
        if self.facts.learns == "clip":
            rule, decay = "clip", self.settings.range_value("l2", 0.0) / self.share.passes
            factor = (grid.qmax - grid.offset) ** -2
        else:
            rule, decay = self.settings.scale_gradient, 0.0
            factor = (values * grid.qmax) ** -0.5
        return Backward(
            estimator, rule, factor, decay, compiles, ends, self.overwritten, self.unkept
        )

    def get_extra_state(self) -> Tensor:
        """Return what a checkpoint must hold beside the tensors, as a tensor of its own."""
        return encode(self._state())

    def set_extra_state(self, state: Tensor | Mapping[str, object]) -> None:
        """Take what `get_extra_state` returned, an average of such, or the dict of older files.

        Raises:
            ValueError: If it is an average over states that do not go together.
        """
        self._take_state(decode(state))

    def _state(self) -> QuantizerState:
        kind = self.grid.kind if self.grid else None
        return {"ready": self.ready, "grid": kind, "steps": 0, "frozen": False}

    def _take_state(self, state: QuantizerState) -> None:
        self.ready = state["ready"]
        self.grid = IntegerGrid(self.bits, state["grid"]) if state["grid"] else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  as torch has it
        """Move to a device as the model does, but keep scales in float32 when it becomes half."""

        def moved(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            return made if made.dtype == tensor.dtype else tensor.to(made.device)

        made = super()._apply(moved, recurse)
        if self.moved:
            self._take_moved({key: moved(value) for key, value in self.moved.items()})
        return made

    def __getstate__(self) -> dict[str, object]:
        """Return what copies and pickles hold: a user's estimator goes by its name."""
        state = vars(self).copy()
        chosen = self.settings.estimator
        if chosen is not None and is_users(chosen.name) and not is_not_loaded(chosen.name):
            del state["estimator"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take what `__getstate__` returned."""
        super().__setstate__(state)
        if "estimator" not in state and self.settings.estimator is not None:
            load_by_absolute_paths({"weights": {"estimator": self.settings.estimator.name}})
            self._choose_estimator(self.settings.estimator)
            self._take_moved(self.moved)

    def __repr__(self) -> str:
        """Return one line, whatever the quantizer consists of."""
        return f"{self._get_name()}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Show the grid and the choices in `print(model)`."""
        grid = self.grid.kind if self.grid else "auto"
        return f"{self.bits} bits, {grid}, {self.settings.range}, {self.gradient}"

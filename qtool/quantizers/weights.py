"""Fake quantization of weights: scales from the weight itself, learned or fitted again."""

from functools import partial

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, but loads no compiler yet

from qtool.numerics.grid import IntegerGrid, dequantize, quantize
from qtool.numerics.ranges import RANGES, absmax, refine_scale, start_of_zeros
from qtool.numerics.saturation import with_fewer_steps
from qtool.numerics.scales import SMALLEST_SCALE
from qtool.numerics.schedules import SCHEDULES, Schedule, constant
from qtool.numerics.weight_rows import WeightRows
from qtool.quantizers.door.given import refuse_useless_scale
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.interval import Interval
from qtool.quantizers.moved import in_backward, place_of, steps_taken
from qtool.quantizers.oscillation import OscillationTracker, codes_of_all, observe
from qtool.quantizers.reach import keep_within_reach
from qtool.quantizers.state import QuantizerState
from qtool.settings.section import Choice
from qtool.settings.tensors import WeightQuantization

Seen = tuple[int, int, int]  # of a weight: version, place, and the steps of all optimizers


class WeightQuantizer(FakeQuantize):
    """Fake quantization of a weight: scales per tensor or per output channel.

    What it is given is the weight of a layer; it scales and rounds the weight's rows.

    A range that is not learned is fitted to the weight again every so many training steps, until
    alpha of a blend reaches 1: from then on the scales, and so the codes, are frozen. One that
    refines, where it is due at every step, takes one iteration from its last scale instead. The
    scales of a weight that does not train, because someone has frozen it, stay as they are.

    Attributes:
        layout: how the rows [C, ...] lie in the weight.
        seen: where the weight was when the last training step began.
        strength: float32 [], of oscillation dampening.
        avoids_saturation: its settings ask for fewer steps where it could saturate.
        interval: of sizes that are rounded, where the range learns one.
        rounded_anew: channels that were rounded anew so that they cannot saturate.
    """

    strength: Tensor
    layout = WeightRows()
    rounded_anew: int = 0
    avoids_saturation: bool = False

    def __init__(
        self, settings: WeightQuantization, weight: Tensor, layout: WeightRows | None = None
    ) -> None:
        super().__init__(settings, settings.integer_grid)
        self.layout = layout or self.layout
        rows = self.layout.rows(weight)
        facts, chosen = settings.of_range, settings.range
        self.refit_every = settings.refit_every or facts.refit_every
        self.refits = not self.learns and not facts.given
        self.refines = facts.refines and self.refit_every == 1
        takes_fan_in = "fan_in" in RANGES.parameters(chosen.name)
        if takes_fan_in and chosen.params.get("fan_in") is None:
            self.rule = partial(self.rule, fan_in=rows[0].numel())
        self.avoids_saturation = settings.saturation == "avoid"
        self.squashes = facts.squashes and self.bits > 1
        self.interval: Interval | None = None
        if facts.interval:
            self.interval = Interval(settings.range_value("gamma", 1.0), self.known_grid.qmax)
        self.steps = 0
        self.frozen = self._held = False
        self.seen: Seen | None = None
        freezing = settings.freezing
        self.tracker = OscillationTracker(rows, freezing.momentum if freezing else None)
        self.threshold = _schedule(freezing.threshold if freezing else None)
        self.dampens = settings.dampening is not None
        self._dampening = _schedule(settings.dampening)
        strength = torch.tensor(self._dampening(0.0))
        self.register_buffer("strength", strength, persistent=False)
        per_channel = settings.granularity == "per_channel"
        shape = [len(rows), *[1] * (rows.ndim - 1)] if per_channel else []
        self.scale.data = torch.ones(shape, device=weight.device)
        self.to(weight.device)
        self.start_of_zeros = start_of_zeros(self.rule, self.known_grid, rows[0].numel())
        self.train_with(weight)
        if facts.costs != "search":
            self.fit(weight)

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Set the scales from the weight by the range rule."""
        if self.interval is not None:
            self.interval.fit(self.layout.rows(weight))
        self._take(self.rule(self._rows(weight), self.known_grid))

    def refuse_useless_scale(self, weight: Tensor) -> None:
        """Check that a given scale leaves something of the weight.

        Raises:
            ModelError: If it does not.
        """
        rows = self.rows_to_round(weight)
        refuse_useless_scale(self, rows.reshape(self.scale.numel(), -1))

    @torch.no_grad()
    def fit_roughly(self, weight: Tensor) -> None:
        """Set scales that wait for a slow search from max|w| instead: enough to see a plan."""
        if not self.ready:
            self._take(absmax(self._rows(weight), self.known_grid))

    @torch.no_grad()
    def fit_again(self, weight: Tensor) -> None:
        """Set the scales from the weight, which has moved a little since they were set."""
        if not (self.refines and self.ready):
            self.fit(weight)
            return
        self._take(refine_scale(self._rows(weight), self.used_scale.reshape(-1), self.known_grid))

    def avoid_saturation(self, weight: Tensor) -> None:
        """Round the weight in steps of one bit fewer from now on; it keeps its width."""
        self.grid = with_fewer_steps(self.stored_grid)
        count = self.layout.rows(weight)[0].numel()
        self.start_of_zeros = start_of_zeros(self.rule, self.known_grid, count)
        if self.ready:
            self.fit(weight)

    @property
    def stored_grid(self) -> IntegerGrid:
        """Return the grid that the codes are stored on, of which rounding may use a part."""
        return IntegerGrid(self.bits, self.known_grid.kind)

    def _take(self, scale: Tensor) -> None:
        """Set the scales, of which there are as many as rows; one of zeros starts elsewhere."""
        scale = torch.where(scale <= SMALLEST_SCALE, self.start_of_zeros, scale)
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.ready = True

    def _rows(self, weight: Tensor) -> Tensor:
        """Return the elements that share each scale, float32 [scales, K]."""
        rows = self.layout.rows(weight.detach()).float()
        return rows.reshape(self.scale.numel(), -1)

    def set_progress(self, progress: float) -> None:
        """Move all schedules to `progress`, the share of training done."""
        super().set_progress(progress)
        self.strength.fill_(self._dampening(progress))

    def refit(self, weight: Tensor) -> None:
        """Set the scales anew where that is due at this training step."""
        if self.refits and not self.frozen and (may_train(weight) or not self.ready):
            if self.steps % self.refit_every == 0:
                self.fit_again(weight)
            self.steps += 1

    def train_with(self, weight: Tensor) -> None:
        """Let a learned scale train where its weight does: a frozen layer is to stay as it is."""
        if self.learns and self.scale.requires_grad and not may_train(weight):
            self._held = True
            self.scale.requires_grad = False
            self.scale.grad = None  # an optimizer would go on with it
        elif self._held and may_train(weight):
            self._held = False
            self.scale.requires_grad = True

    @property
    def blend_is_done(self) -> bool:
        """Tell whether there is a blend and alpha has reached 1 for good."""
        if self.blend is None or self.progress < self.last_phase:
            return False
        return self.blend(self.progress) >= 1.0

    def before_rounding(self, weight: Tensor) -> Tensor:
        """Return the rows of the weight as rounding sees them, [C, ...].

        With a range that squashes, such as dorefa, that is tanh(w) / max|tanh(w)| (Zhou et al.,
        2016, arXiv:1606.06160), or the place in its interval (qil); elements that are frozen lie at
        their levels.
        """
        rows = self.layout.rows(weight)
        if self.squashes and self.interval is not None:
            rows = self.interval(rows, trains=may_train(weight))
        elif self.squashes:
            squashed = torch.tanh(rows)
            rows = squashed / squashed.abs().amax()
        if not self.tracker.freezes:
            return rows
        return self.tracker.hold(rows, self.used_scale, self.known_grid)

    @torch.no_grad()
    def rows_to_round(self, weight: Tensor) -> Tensor:
        """Return the rows as rounding sees them, float32 [C, ...], to be looked at."""
        return self.before_rounding(weight.detach()).float()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        if self.passes_on:
            return self.layout.weight(self.before_rounding(weight)) if self.squashes else weight
        if not self.ahead and self.training and torch.is_grad_enabled():
            self._begin_step(weight)
        if not self.ready:
            self.fit(weight)
        trains = may_train(weight)
        rounded = self.round_to_grid(self.before_rounding(weight), trains=trains)
        if not self.tracker.freezes:
            return self.layout.weight(rounded)
        # a frozen element is s times its code: a learned scale gets g times the code from it
        factor = self._backward(weight.numel() // self.scale.numel()).factor
        scale = self.used_scale
        if trains:
            scale = scale + factor * (self.scale - self.scale.detach())
        return self.layout.weight(self.tracker.hold(rounded, scale, self.known_grid))

    @_disable_dynamo
    def _begin_step(self, weight: Tensor) -> None:
        """Do what is due once per step, where the weight has moved and no one else has done it."""
        seen = seen_at(weight)
        if in_backward():  # the values of a pass that is over are computed again
            return
        if seen != self.seen or not isinstance(weight, nn.Parameter):  # made anew in each pass
            self.seen = seen
            self.train_with(weight)
            begin_steps([self], [weight])

    def penalty(self, weight: Tensor) -> Tensor | None:
        """Return what oscillation dampening adds to the loss, [], or None without it.

            strength * sum (w_hat - clip(w, low, high))^2, with no gradient through w_hat

        Reference: Nagel et al., 2022, arXiv:2203.11086.
        """
        if not self.dampens:
            return None
        grid, scale = self.known_grid, self.used_scale
        rows = self.before_rounding(weight)
        low, high = ((end - grid.offset) * scale for end in (grid.qmin, grid.qmax))
        clipped = torch.maximum(torch.minimum(rows, high), low)
        level = dequantize(quantize(rows.detach(), scale, 0, grid), scale, 0, grid)
        return self.strength * (level - clipped).square().sum()

    def _state(self) -> QuantizerState:
        return {**super()._state(), "steps": self.steps, "frozen": self.frozen}

    def _take_state(self, state: QuantizerState) -> None:
        grid = self.grid  # the settings', perhaps with fewer steps, whatever made the state
        super()._take_state(state)
        self.grid = grid
        self.steps, self.frozen = state["steps"], state["frozen"]

    def extra_repr(self) -> str:
        """Show the grid and the choices in `print(model)`."""
        fewer = self.known_grid.bits < self.bits
        steps = f", in {self.known_grid.bits}-bit steps" if fewer else ""
        return f"{super().extra_repr()}{steps}"


def may_train(weight: Tensor) -> bool:
    """Tell whether no one has frozen a weight; one that is made anew in each pass is not frozen."""
    return weight.requires_grad or not isinstance(weight, nn.Parameter)


def seen_at(weight: Tensor) -> Seen:
    """Return what changes when a training step has moved the weight."""
    return *place_of(weight), steps_taken()


@torch.no_grad()
def begin_steps(quantizers: list[WeightQuantizer], weights: list[Tensor]) -> None:
    """Do what is due once per training step: fit scales again, watch weights oscillate."""
    for quantizer, weight in zip(quantizers, weights, strict=True):
        quantizer.refit(weight)
        if quantizer.interval is not None and may_train(weight):
            quantizer.interval.keep_within(quantizer.layout.rows(weight))
    keep_within_reach(
        (q.scale, q.known_grid, q.layout.rows(weight))
        for q, weight in zip(quantizers, weights, strict=True)
        if q.learns and q.scale.requires_grad and may_train(weight)
    )
    trackers = [quantizer.tracker for quantizer in quantizers]
    held = [q.before_rounding(weight) for q, weight in zip(quantizers, weights, strict=True)]
    scales, grids = [q.scale for q in quantizers], [q.known_grid for q in quantizers]
    codes = codes_of_all(trackers, held, scales, grids)
    observe(trackers, codes)
    for quantizer, weight, now in zip(quantizers, weights, codes, strict=True):
        if quantizer.tracker.freezes and may_train(weight):
            quantizer.tracker.freeze(now, quantizer.threshold(quantizer.progress))


def _schedule(choice: Choice | None) -> Schedule:
    """Return a schedule; 0 throughout where none is chosen."""
    if choice is None:
        return partial(constant, value=0.0)
    return SCHEDULES.build(choice.name, **choice.params)

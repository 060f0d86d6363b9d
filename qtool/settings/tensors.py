"""What a recipe may say of one kind of tensor: weights, or the inputs of layers."""

from typing import Literal, Self, TypeVar, cast

from pydantic import Field, model_validator

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.range_facts import RangeFacts
from qtool.numerics.ranges import DEFAULT, RANGES, RECOMMENDED, TRAINED
from qtool.numerics.roundings import ROUNDINGS
from qtool.problems import Problem, ProblemsError, either
from qtool.settings.choices import BlendChoice, EstimatorChoice, RangeChoice, StrengthChoice
from qtool.settings.section import Choice, Section
from qtool.settings.user_parts import is_users

T = TypeVar("T")

NOISE_IS_EXACT = "additive_noise has an exact gradient: only straight_through goes with it"


class TensorQuantization(Section):
    """How one kind of tensor is quantized; the part that weights and activations share."""

    range: RangeChoice = Choice(name=DEFAULT)
    """Rule that sets the scale; auto is learned in training, and begins with mse's scale where
    nothing is trained."""

    estimator: EstimatorChoice | None = None
    """Gradient estimator of the rounding; straight_through where neither it nor blend is given."""

    blend: BlendChoice | None = None
    """Alpha-blending: the schedule of alpha, from 0 to 1. Without an estimator the gradient passes
    the float term only."""

    scale_gradient: Literal["lsq", "chain_rule"] = "lsq"
    """Gradient of a learned scale: the straight-through form, or through the chosen estimator."""

    @model_validator(mode="before")
    @classmethod
    def _straight_through_by_default(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("estimator") is None and data.get("blend") is None:
            return {**data, "estimator": "straight_through"}
        return data

    @property
    def of_range(self) -> RangeFacts:
        """Return what is true of the range."""
        return RANGES.facts(self.range.name)

    def range_value(self, key: str, usual: T) -> T:
        """Return a parameter of the range, given or by default; `usual` where it has none."""
        return cast(T, RANGES.values(self.range.name, self.range.params).get(key, usual))

    def with_range(self, name: str) -> Self:
        """Return the same with this range, where none is said."""
        if self.range.name != DEFAULT:
            return self
        return self.model_copy(update={"range": Choice(name=name)})

    def _shared_problems(self, bits: int, rounding: str) -> list[Problem]:
        """Return what does not go together on either side."""
        found: list[Problem] = []
        name = "" if self.estimator is None else self.estimator.name
        trained = self.with_range(TRAINED)
        learns = trained.of_range.learns
        if self.blend is not None and learns is not None:
            why = f"excludes range: {trained.range.name}; choose {either(RECOMMENDED['blend'])}"
            found.append(("blend", why))
        if self.blend is not None and ROUNDINGS.facts(rounding).training_only:
            found.append(("rounding", f"{rounding} excludes a blend; remove one of the two"))
        if ESTIMATORS.facts(name).learns and self.blend is not None:
            found.append(("blend", f"{name} learns by what rounding makes of all; leave it out"))
        if ESTIMATORS.facts(name).family == "sign" and bits != 1:
            found.append(("estimator", f"{name} is for grids of two levels; set bits: 1"))
        if rounding == "additive_noise" and name not in ("", "straight_through"):
            found.append(("estimator", NOISE_IS_EXACT))
        if rounding == "additive_noise" and learns == "clip":
            why = f"{self.range.name} excludes additive_noise; choose {TRAINED}"
            found.append(("range", why))
        if learns == "clip" and self.scale_gradient == "chain_rule":
            why = f"{self.range.name} has a gradient of its own; leave this out"
            found.append(("scale_gradient", why))
        return found


class Freezing(Section):
    """Iterative freezing: weights that oscillate too often keep their code for good."""

    threshold: StrengthChoice
    """Oscillation frequency above which a weight is frozen: a number or a schedule."""

    momentum: float = Field(default=0.01, gt=0, le=1)
    """Weight of the newest step in the moving averages of frequency and code."""


class WeightQuantization(TensorQuantization):
    """How weights are quantized: symmetric, one scale per tensor or per output channel."""

    bits: int = Field(ge=1, le=8)
    """Width of the integer grid; 1 bit is {-1, +1} times a scale."""

    granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    """One scale for the tensor, or one for each output channel."""

    grid: Literal["narrow", "full", "mid_rise", "ternary"] = "narrow"
    """The integers allowed; 1 bit is always mid_rise."""

    rounding: Literal["half_to_even", "stochastic_rounding", "additive_noise"] = "half_to_even"
    """Which integer is taken in training; evaluation takes the nearest."""

    refit_every: int | None = Field(default=None, ge=1)
    """Training steps between fits of a range that is not learned; default 1, but 100 for mse,
    calibrated and percentile."""

    learning_rate_scale: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of these latent weights only."""

    dampening: StrengthChoice | None = None
    """Strength of a pull on each weight towards its level: a number or a schedule."""

    freezing: Freezing | None = None
    """Freeze weights that oscillate between two codes."""

    saturation: Literal["allow", "avoid"] = "allow"
    """Avoid takes steps of one bit fewer where codes of this width can saturate on processors
    without VNNI; the weight stays as wide on disk."""

    @property
    def integer_grid(self) -> IntegerGrid:
        """Return the grid; 1 bit is mid_rise whatever `grid` says."""
        return IntegerGrid(self.bits, "mid_rise" if self.bits == 1 else self.grid)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = self._shared_problems(self.bits, self.rounding)
        if self.grid == "mid_rise" and self.bits == 8:
            found.append(("grid", "mid_rise takes 1 to 7 bits; use narrow for 8"))
        if self.grid == "ternary" and self.bits != 2:
            found.append(("grid", "ternary takes bits: 2, for its three levels -1, 0 and 1"))
        if self.of_range.interval and self.integer_grid.kind not in ("narrow", "ternary"):
            why = (
                f"{self.range.name} rounds to levels on both sides of 0; choose narrow, bits: 2 up"
            )
            found.append(("grid", why))
        if not self.of_range.serves("weights"):
            use = f"use {either(RECOMMENDED['weights'])} for weights"
            found.append(("range", f"{self.range.name} is for activations; {use}"))
        if self.freezing is not None and self.blend is not None:
            found.append(("freezing", "excludes a blend; remove one of the two"))
        if found:
            raise ProblemsError(found)
        return self


class ActivationQuantization(TensorQuantization):
    """How the inputs of layers are quantized: one scale for the tensor."""

    range: RangeChoice = Choice(name=DEFAULT)
    """Rule that sets the scale; auto is learned in training, but mse of an image with place:
    every_value, and begins with mse's scale where nothing is trained."""

    bits: int = Field(ge=1, le=8)
    """Width of the integer grid; 1 bit is {0, 1} on unsigned, else {-1, +1}, times a scale."""

    grid: Literal["auto", "unsigned", "full", "narrow", "mid_rise", "asymmetric"] = "auto"
    """The integers allowed; auto is the best of unsigned, full and asymmetric for the first values
    that are seen, asymmetric only where the range finds a zero point without learning it."""

    place: Literal["every_value", "layer_inputs", "relu_outputs"] = "every_value"
    """Where the quantizers stand; every_value gives each value one, where it is made, so that
    additions and poolings run in integers, too; relu_outputs makes each ReLU and its quantizer
    one."""

    rounding: Literal["half_to_even", "ceil", "stochastic_rounding", "additive_noise"] = (
        "half_to_even"
    )
    """Which integer is taken; ceil also in evaluation, where the last two take the nearest."""

    join_bits: int = Field(default=8, ge=2, le=8)
    """Width of the grid of values that additions, concatenations, products or poolings read, with
    place: every_value; a layer that reads one, too, rounds it to its own bits."""

    def grid_for(self, *, signed: bool) -> IntegerGrid:
        """Return the grid; where it is `auto`, by whether any value is negative."""
        kind = self.grid
        if kind == "auto":
            kind = "full" if signed and not self.of_range.unsigned else "unsigned"
        if self.bits == 1 and kind != "unsigned":
            kind = "mid_rise"
        return IntegerGrid(self.bits, kind)

    def grids(self) -> list[IntegerGrid]:
        """Return what `auto` chooses from, the simplest first, or the one grid that is named.

        A learned range never comes to asymmetric by itself: its offset is a parameter, which an
        optimizer that was built before the first values would not know.
        """
        if self.grid != "auto":
            return [self.grid_for(signed=True)]
        if self.of_range.unsigned:
            return [self.grid_for(signed=False)]
        grids = [self.grid_for(signed=False), self.grid_for(signed=True)]
        takes_zero_point = self.of_range.zero_point and self.of_range.learns is None
        rounds = self.rounding not in ("ceil", "additive_noise")
        if takes_zero_point and rounds and self.bits > 1 and self.place != "relu_outputs":
            grids.append(IntegerGrid(self.bits, "asymmetric"))
        return grids

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = self._shared_problems(self.bits, self.rounding)
        if self.grid == "mid_rise" and self.bits > 1:
            found.append(("grid", "mid_rise inputs have 1 bit; use full for more"))
        if self.grid == "asymmetric":
            found += self._asymmetric_problems()
        if self.of_range.unsigned and self.grid not in ("auto", "unsigned"):
            found.append(("range", f"{self.range.name} is for grid: unsigned"))
        if not self.of_range.serves("activations"):
            use = f"use {either(RECOMMENDED['activations'])}"
            found.append(("range", f"{self.range.name} is for weights; {use}"))
        if self.place == "relu_outputs" and self.grid not in ("auto", "unsigned"):
            found.append(("place", "relu_outputs needs grid: auto or unsigned"))
        if self.rounding == "ceil":
            found += self._ceil_problems()
        if found:
            raise ProblemsError(found)
        return self

    def _asymmetric_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if not self.of_range.zero_point:
            finding = either(_ranges_with_zero_point())
            why = f"asymmetric needs range: {finding}, which find a zero point"
            found.append(("grid", why))
        if self.bits == 1:
            found.append(("grid", "asymmetric takes 2 bits or more; use unsigned for {0, 1}"))
        if self.rounding == "additive_noise":
            why = "additive_noise excludes grid: asymmetric; choose unsigned or full"
            found.append(("rounding", why))
        return found

    def _ceil_problems(self) -> list[Problem]:
        found: list[Problem] = []
        fitting = _estimators_for_ceil()
        name = "" if self.estimator is None else self.estimator.name
        if name and name not in fitting and not is_users(name):
            why = f"{name} has its thresholds at half-integers, ceil at integers"
            found.append(("estimator", f"{why}; choose one of: {', '.join(fitting)}"))
        if self.bits == 1 and self.grid_for(signed=True).kind != "unsigned":
            found.append(("rounding", "ceil with 1 bit needs grid: unsigned, {0, 1}"))
        return found


def _ranges_with_zero_point() -> list[str]:
    """Return the ranges for the asymmetric grid: those that follow first, those learned last."""
    facts = {name: RANGES.facts(name) for name in RANGES.names() if name != DEFAULT}
    found = [name for name in facts if facts[name].zero_point and facts[name].serves("activations")]
    return sorted(found, key=lambda n: (facts[n].learns is not None, not facts[n].follows))


def _estimators_for_ceil() -> list[str]:
    """Return qtool's estimators that serve ceil: those of any grid by name, then the others."""
    facts = {name: ESTIMATORS.facts(name) for name in ESTIMATORS.names()}
    found = [name for name in facts if facts[name].serves_ceil]
    any_grid = sorted(name for name in found if facts[name].family == "any grid")
    return any_grid + [name for name in found if name not in any_grid]

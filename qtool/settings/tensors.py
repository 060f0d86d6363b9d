"""What a recipe may say of one kind of tensor: weights, or the inputs of layers."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.relu_family import RELU_FAMILY
from qtool.numerics.roundings import TRAINING_ONLY
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.problems import Problem, ProblemsError
from qtool.settings.choices import BlendChoice, EstimatorChoice, RangeChoice, StrengthChoice
from qtool.settings.section import Choice, Section
from qtool.settings.user_estimators import is_users

NOISE_IS_EXACT = "additive_noise has an exact gradient: only straight_through goes with it"
LEARNED = ("learned", "pact")  # ranges that are parameters


class TensorQuantization(Section):
    """How one kind of tensor is quantized; the part that weights and activations share."""

    range: RangeChoice = Choice(name="learned")
    """Rule that sets the scale."""

    estimator: EstimatorChoice | None = None
    """Gradient estimator of the rounding; straight_through where neither it nor blend is given."""

    blend: BlendChoice | None = None
    """Alpha-blending instead of an estimator: the schedule of alpha, from 0 to 1."""

    scale_gradient: Literal["lsq", "chain_rule"] = "lsq"
    """Gradient of a learned scale: the straight-through form, or through the chosen estimator."""

    @model_validator(mode="before")
    @classmethod
    def _straight_through_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("estimator") is None and data.get("blend") is None:
            return {**data, "estimator": "straight_through"}
        return data

    def _shared_problems(self, bits: int, rounding: str) -> list[Problem]:
        """Return what does not go together on either side."""
        found: list[Problem] = []
        name = "" if self.estimator is None else self.estimator.name
        if self.blend is not None and self.estimator is not None:
            found.append(("blend", "excludes an estimator; remove one of the two"))
        if self.blend is not None and self.range.name in LEARNED:
            found.append(("blend", f"excludes range: {self.range.name}; choose absmax or mse"))
        if self.blend is not None and rounding in TRAINING_ONLY:
            found.append(("rounding", f"{rounding} excludes a blend; remove one of the two"))
        if name in SIGN_FAMILY and bits != 1:
            found.append(("estimator", f"{name} is for grids of two levels; set bits: 1"))
        if rounding == "additive_noise" and name not in ("", "straight_through"):
            found.append(("estimator", NOISE_IS_EXACT))
        if rounding == "additive_noise" and self.range.name == "pact":
            found.append(("range", "pact excludes additive_noise; choose learned"))
        if self.range.name == "pact" and self.scale_gradient == "chain_rule":
            found.append(("scale_gradient", "pact has a gradient of its own; leave this out"))
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
    """Training steps between fits of a range that is not learned; default 1, but 100 for mse and
    percentile."""

    learning_rate_scale: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of these latent weights only."""

    dampening: StrengthChoice | None = None
    """Strength of a pull on each weight towards its level: a number or a schedule."""

    freezing: Freezing | None = None
    """Freeze weights that oscillate between two codes."""

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
        if self.range.name in ("ema_min_max", "half_normal", "pact"):
            why = f"{self.range.name} is for activations; use absmax or learned for weights"
            found.append(("range", why))
        if self.freezing is not None and self.blend is not None:
            found.append(("freezing", "excludes a blend; remove one of the two"))
        if found:
            raise ProblemsError(found)
        return self


class ActivationQuantization(TensorQuantization):
    """How the inputs of layers are quantized: one scale for the tensor."""

    bits: int = Field(ge=1, le=8)
    """Width of the integer grid; 1 bit is {0, 1} on unsigned, else {-1, +1}, times a scale."""

    grid: Literal["auto", "unsigned", "full", "narrow", "mid_rise", "asymmetric"] = "auto"
    """The integers allowed; auto is unsigned where no value is negative, else full."""

    place: Literal["layer_inputs", "relu_outputs"] = "layer_inputs"
    """Where the quantizers stand; relu_outputs makes each ReLU and its quantizer one."""

    rounding: Literal["half_to_even", "ceil", "stochastic_rounding", "additive_noise"] = (
        "half_to_even"
    )
    """Which integer is taken; ceil also in evaluation, where the last two take the nearest."""

    def grid_for(self, signed: bool) -> IntegerGrid:
        """Return the grid; where it is `auto`, by whether any value is negative."""
        kind = self.grid
        if kind == "auto":
            kind = "full" if signed and self.range.name != "half_normal" else "unsigned"
        if self.bits == 1 and kind != "unsigned":
            kind = "mid_rise"
        return IntegerGrid(self.bits, kind)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = self._shared_problems(self.bits, self.rounding)
        if self.grid == "mid_rise" and self.bits > 1:
            found.append(("grid", "mid_rise inputs have 1 bit; use full for more"))
        if self.grid == "asymmetric":
            found += self._asymmetric_problems()
        if self.range.name == "half_normal" and self.grid not in ("auto", "unsigned"):
            found.append(("range", "half_normal is for grid: unsigned"))
        if self.range.name == "he_uniform":
            found.append(("range", "he_uniform is for weights; use learned or ema_min_max"))
        if self.place == "relu_outputs" and self.grid not in ("auto", "unsigned"):
            found.append(("place", "relu_outputs needs grid: auto or unsigned"))
        if self.rounding == "ceil":
            found += self._ceil_problems()
        if found:
            raise ProblemsError(found)
        return self

    def _asymmetric_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.range.name not in ("ema_min_max", "min_max", "learned"):
            why = "asymmetric needs range: ema_min_max, min_max or learned, which find a zero point"
            found.append(("grid", why))
        if self.bits == 1:
            found.append(("grid", "asymmetric takes 2 bits or more; use unsigned for {0, 1}"))
        if self.rounding == "additive_noise":
            why = "additive_noise excludes grid: asymmetric; choose unsigned or full"
            found.append(("rounding", why))
        return found

    def _ceil_problems(self) -> list[Problem]:
        found: list[Problem] = []
        fitting = ["identity", "straight_through", *RELU_FAMILY.names()]
        name = "" if self.estimator is None else self.estimator.name
        if name and name not in fitting and not is_users(name):
            why = f"{name} has its thresholds at half-integers, ceil at integers"
            found.append(("estimator", f"{why}; choose one of: {', '.join(fitting)}"))
        if self.bits == 1 and self.grid_for(signed=True).kind != "unsigned":
            found.append(("rounding", "ceil with 1 bit needs grid: unsigned, {0, 1}"))
        return found

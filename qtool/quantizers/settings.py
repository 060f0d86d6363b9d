"""What the `quantization` section of a recipe may say: which layers, how many bits, and how."""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import RANGES
from qtool.numerics.schedules import SCHEDULES
from qtool.sections import (
    Choice,
    Problem,
    ProblemsError,
    Section,
    attempt,
    in_registry,
    problems_of,
)

EstimatorChoice = Annotated[Choice, in_registry(ESTIMATORS)]
RangeChoice = Annotated[Choice, in_registry(RANGES)]


def _from_0_to_1(value: object) -> object:
    """Let a blend leave out what it always is: a schedule from 0 to 1."""
    choice = {"name": value} if isinstance(value, str) else value
    if isinstance(choice, dict) and choice.get("name") in SCHEDULES:
        accepted = SCHEDULES.parameters(choice["name"])
        ends = {k: v for k, v in (("start", 0.0), ("stop", 1.0)) if k in accepted}
        return {**ends, **choice}
    return choice


BlendChoice = Annotated[Choice, in_registry(SCHEDULES), BeforeValidator(_from_0_to_1)]


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

    def _shared_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.blend is not None and self.estimator is not None:
            found.append(("blend", "excludes an estimator; remove one of the two"))
        if self.blend is not None and self.range.name == "learned":
            found.append(("blend", "excludes a learned range; choose range: absmax or mse"))
        if self.blend is not None:
            alpha = SCHEDULES.build(self.blend.name, **self.blend.params)
            if not all(0.0 <= alpha(k / 100) <= 1.0 for k in range(101)):
                found.append(("blend", "alpha must stay within 0 and 1"))
            elif alpha(1.0) != 1.0:
                found.append(("blend", f"alpha ends at {alpha(1.0)}; it must reach 1"))
        return found


class WeightQuantization(TensorQuantization):
    """How weights are quantized: symmetric, one scale per tensor or per output channel."""

    bits: int = Field(ge=1, le=8)
    """Width of the integer grid; 1 bit is {-1, +1} times a scale."""

    granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    """One scale for the tensor, or one for each output channel."""

    grid: Literal["narrow", "full", "mid_rise"] = "narrow"
    """The integers allowed; 1 bit is always mid_rise."""

    refit_every: int | None = Field(default=None, ge=1)
    """Training steps between fits of a range that is not learned; default 1, for mse 100."""

    learning_rate_scale: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of these latent weights only."""

    @property
    def integer_grid(self) -> IntegerGrid:
        """Return the grid; 1 bit is mid_rise whatever `grid` says."""
        return IntegerGrid(self.bits, "mid_rise" if self.bits == 1 else self.grid)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = self._shared_problems()
        if self.grid == "mid_rise" and self.bits == 8:
            found.append(("grid", "mid_rise takes 1 to 7 bits; use narrow for 8"))
        if self.range.name == "ema_min_max":
            found.append(("range", "ema_min_max watches activations; use absmax for weights"))
        if found:
            raise ProblemsError(found)
        return self


class ActivationQuantization(TensorQuantization):
    """How the inputs of layers are quantized: one scale for the tensor."""

    bits: int = Field(ge=2, le=8)
    """Width of the integer grid."""

    grid: Literal["auto", "unsigned", "full", "narrow", "asymmetric"] = "auto"
    """The integers allowed; auto is unsigned where no value is negative, else full."""

    rounding: Literal["half_to_even"] = "half_to_even"
    """Which way ties go."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = self._shared_problems()
        if self.grid == "asymmetric" and self.range.name != "ema_min_max":
            found.append(("grid", "asymmetric needs range: ema_min_max, which finds a zero point"))
        if found:
            raise ProblemsError(found)
        return self


class Override(Section):
    """Other settings for the layers whose names match; an absent key inherits."""

    match: str | list[str]
    """Patterns of whole module names, such as conv1 or *.conv1."""

    weights: dict[str, Any] | None = None
    """Keys that differ from quantization.weights; null leaves the weights float."""

    activations: dict[str, Any] | None = None
    """Keys that differ from quantization.activations; null leaves the input float."""

    @property
    def patterns(self) -> list[str]:
        """Return the patterns as a list."""
        return [self.match] if isinstance(self.match, str) else self.match

    @field_validator("match")
    @classmethod
    def _not_empty(cls, match: str | list[str]) -> str | list[str]:
        if not match:
            raise ValueError("names no layer; give a module name or a pattern such as layer1.*")
        return match

    @model_serializer(mode="wrap")
    def _keep_absent_keys_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k in self.model_fields_set}


class Quantization(Section):
    """What is quantized, and how. A side that is absent or null stays float."""

    weights: WeightQuantization | None = None
    """How weights are quantized."""

    activations: ActivationQuantization | None = None
    """How the inputs of layers are quantized."""

    overrides: list[Override] = Field(default_factory=list)
    """Other settings by module name pattern; the first match wins."""

    @model_validator(mode="wrap")
    @classmethod
    def _overrides_make_sense(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the sides and what the overrides make of them, and report all of it at once."""
        made, given, found = attempt(cls, data, handler)
        wrong_sides = {place.split(".")[0] for place, _ in found}
        overrides = given.get("overrides") if isinstance(given, dict) else None
        for index, override in enumerate(overrides if isinstance(overrides, list) else []):
            for side, section in _SIDES.items():
                changes = override.get(side) if isinstance(override, dict) else None
                if isinstance(changes, dict):
                    # a wrong side is reported once, not again by each layer that inherits it
                    base = {"bits": 8} if side in wrong_sides else given.get(side) or {}
                    found += _override_problems(index, side, section, base, changes)
        if found or made is None:
            raise ProblemsError(found)
        return made

    def _merged(self, override: Override, side: str, section: type[Section]) -> Any:
        """Return this side's settings under an override, or None where it is left float."""
        own = getattr(self, side)
        if side not in override.model_fields_set:
            return own
        changes = getattr(override, side)
        if changes is None:
            return None
        base = own.model_dump(exclude_none=True) if own is not None else {}
        return section.model_validate(_merge(base, changes))

    def for_layer(
        self, name: str
    ) -> tuple[WeightQuantization | None, ActivationQuantization | None, str]:
        """Return what applies to the module `name`: weights, activations, and where that stands."""
        for index, override in enumerate(self.overrides):
            if any(fnmatchcase(name, pattern) for pattern in override.patterns):
                merged = [self._merged(override, side, _SIDES[side]) for side in _SIDES]
                return merged[0], merged[1], f"overrides.{index}"
        return self.weights, self.activations, "quantization"


_SIDES: dict[str, type[Section]] = {
    "weights": WeightQuantization,
    "activations": ActivationQuantization,
}


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings under an override; a blend and an estimator take each other's place."""
    dropped = {"blend": "estimator", "estimator": "blend"}
    gone = {dropped[key] for key in dropped if changes.get(key) is not None}
    kept = {k: v for k, v in base.items() if v is not None and k not in gone}
    return {**kept, **changes}


def _override_problems(
    index: int, side: str, section: type[Section], base: dict[str, Any], changes: dict[str, Any]
) -> list[Problem]:
    """Return what is wrong with one side of one override, with its places."""
    try:
        section.model_validate(_merge(base, changes))
    except ValidationError as error:
        inner = problems_of(error, section)
        return [(f"overrides.{index}.{side}.{place}".rstrip("."), why) for place, why in inner]
    return []

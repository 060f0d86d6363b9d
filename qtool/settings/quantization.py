"""What the `quantization` section of a recipe may say: which layers, how many bits, and how."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Self, TypeVar

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from qtool.numerics.ranges import DEFAULT
from qtool.problems import Problem, ProblemsError, shown
from qtool.settings.budget import Budget
from qtool.settings.section import Section, attempt, problems_of
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

S = TypeVar("S", bound=Section)
# a ReLU of the one is a module that is swapped, of the other a call of a function
_EXCLUDE_EACH_OTHER = ("every_value", "relu_outputs")


class Override(Section):
    """Other settings for the layers or sites whose names match; an absent key inherits."""

    match: str | list[str]
    """Patterns of whole module names, such as conv1 or *.conv1, or with place: every_value of
    sites, such as layer1.0:add0."""

    weights: dict[str, object] | None = None
    """Keys that differ from quantization.weights; null leaves the weights float."""

    activations: dict[str, object] | None = None
    """Keys that differ from quantization.activations, for what a layer reads or a site makes; null
    leaves it float."""

    @property
    def patterns(self) -> list[str]:
        """Return the patterns as a list."""
        return [self.match] if isinstance(self.match, str) else self.match

    def matches(self, name: str) -> bool:
        """Tell whether a pattern fits the name of a layer, or of a site, which has a colon.

        A pattern without a colon speaks of layers alone: layer1.* is not the sites of layer1.0.
        """
        same_kind = [p for p in self.patterns if of_sites(p) == of_sites(name)]
        return any(fnmatchcase(name, pattern) for pattern in same_kind)

    def with_range(self, name: str) -> Self:
        """Return the same with this range where auto is said; one that is absent is inherited."""
        sides = {"weights": self.weights, "activations": self.activations}
        said = {k: side for k, side in sides.items() if side and _name_of(side) == DEFAULT}
        return self.model_copy(update={k: {**side, "range": name} for k, side in said.items()})

    @field_validator("match")
    @classmethod
    def _not_empty(cls, match: str | list[str]) -> str | list[str]:
        if not match:
            raise ValueError("names no layer; give a module name or a pattern such as layer1.*")
        return match

    @model_serializer(mode="wrap")
    def _keep_absent_keys_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if k in self.model_fields_set}


def _name_of(side: Mapping[str, object]) -> object:
    """Return the name of the range that one side of an override says."""
    chosen = side.get("range")
    return chosen.get("name") if isinstance(chosen, Mapping) else chosen


def of_sites(pattern: str) -> bool:
    """Tell whether a pattern, or a name, is one of sites, BLOCK:FUNCTIONn, not of layers."""
    return ":" in pattern


class Quantization(Section):
    """What is quantized, and how. A side that is absent or null stays float."""

    weights: WeightQuantization | None = None
    """How weights are quantized."""

    activations: ActivationQuantization | None = None
    """How the inputs of layers are quantized."""

    overrides: list[Override] = Field(default_factory=list)
    """Other settings by module name pattern; the first match wins."""

    budget: Budget | None = None
    """What the widths of weights may cost together; `qtool train` and `qtool convert RECIPE` choose
    them, but for those that an override says, and write them into the overrides."""

    @model_validator(mode="wrap")
    @classmethod
    def _overrides_make_sense(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the sides and what the overrides make of them, and report all of it at once."""
        made, given, found = attempt(cls, data, handler)
        wrong_sides = {place.split(".")[0] for place, _ in found}
        given = given if isinstance(given, dict) else {}
        overrides = given.get("overrides")
        for index, override in enumerate(overrides if isinstance(overrides, list) else []):
            for side, section in _SIDES.items():
                changes = override.get(side) if isinstance(override, dict) else None
                if isinstance(changes, dict):
                    # a wrong side is reported once, not again by each layer that inherits it
                    base = {"bits": 8} if side in wrong_sides else given.get(side) or {}
                    found += _override_problems(f"overrides.{index}.{side}", section, base, changes)
        if made is not None and not found:
            found += made._site_problems() + made._place_problems() + made._budget_problems()
        if found or made is None:
            raise ProblemsError(found)
        return made

    def _site_problems(self) -> list[Problem]:
        """Return what is said of the weights of sites, which have none."""
        return [
            (f"overrides.{index}.weights", f"{shown(pattern)} is a site, which has no weights")
            for index, override in enumerate(self.overrides)
            for pattern in override.patterns
            if of_sites(pattern) and "weights" in override.model_fields_set
        ]

    def _place_problems(self) -> list[Problem]:
        """Return where a recipe asks for places that exclude each other."""
        first = ""
        found: list[Problem] = []
        for where, inputs in self._said_of_activations():
            if inputs is None or inputs.place not in _EXCLUDE_EACH_OTHER:
                continue
            if first and inputs.place != first:
                why = f"{inputs.place} excludes {first}, which others have"
                say = f"say place: {first} or layer_inputs here, or {inputs.place} everywhere"
                found.append((f"{where}.place", f"{why}; {say}"))
            first = first or inputs.place
        return found

    def _budget_problems(self) -> list[Problem]:
        """Return why there is nothing that a budget chooses."""
        if self.budget is None:
            return []
        if self.weights is None:
            return [("budget", "chooses widths of weights, which are float; say weights.bits")]
        if len(widths_of(self.weights)) < 2:
            why = f"weights of grid: {self.weights.grid} with this estimator have no other width"
            return [("budget", f"{why} than {self.weights.bits}; leave out one of the two")]
        return []

    def _said_of_activations(self) -> Iterator[tuple[str, ActivationQuantization | None]]:
        """Yield what applies to activations, by the recipe itself and by each override."""
        yield "activations", self.activations
        for index, override in enumerate(self.overrides):
            if override.activations is not None:
                made = overridden(self.activations, override.activations, ActivationQuantization)
                yield f"overrides.{index}.activations", made

    @property
    def at_every_value(self) -> bool:
        """Tell whether anything is to be quantized where values are made."""
        said = [inputs for _, inputs in self._said_of_activations() if inputs is not None]
        return any(inputs.place == "every_value" for inputs in said)

    def override_of(self, *names: str) -> tuple[str, Override] | None:
        """Return the first override that speaks of a layer or site, by any of its names, and where.

        A site goes by where its quantizer stands, and by the call that makes the value.
        """
        for index, override in enumerate(self.overrides):
            if any(override.matches(name) for name in names):
                return f"overrides.{index}", override
        return None

    def with_range(self, name: str) -> Self:
        """Return the same with this range wherever none is said; the one place that decides it."""
        sides = {"weights": self.weights, "activations": self.activations}
        made = {k: None if side is None else side.with_range(name) for k, side in sides.items()}
        overrides = [override.with_range(name) for override in self.overrides]
        return self.model_copy(update={**made, "overrides": overrides})

    def notes(self) -> list[str]:
        """Return what theory says against the choices, a line each."""
        side = self.activations
        if side is not None and side.estimator is not None and side.estimator.name == "identity":
            return [
                "identity on activations passes gradients where the value saturates; it need not "
                "settle near a minimum (arXiv:1903.05662)"
            ]
        return []

    def for_layer(
        self, name: str
    ) -> tuple[WeightQuantization | None, ActivationQuantization | None, str]:
        """Return what applies to the module `name`: weights, activations, and where that stands."""
        if (found := self.override_of(name)) is not None:
            where, override = found
            said = override.model_fields_set
            weights, activations = self.weights, self.activations
            if "weights" in said:
                weights = overridden(weights, override.weights, WeightQuantization)
            if "activations" in said:
                changes = override.activations
                activations = overridden(activations, changes, ActivationQuantization)
            return weights, activations, where
        return self.weights, self.activations, "quantization"


WIDTHS = range(2, 9)  # bits, that a budget chooses from


def widths_of(
    settings: WeightQuantization, among: Iterable[int] = WIDTHS
) -> dict[int, WeightQuantization]:
    """Return width -> the settings of a weight at that width, of those that it may have."""
    found: dict[int, WeightQuantization] = {}
    for bits in among:
        with suppress(ValidationError):
            made = overridden(settings, {"bits": bits}, WeightQuantization)
            if made is not None:
                found[bits] = made
    return found


_SIDES: dict[str, type[Section]] = {
    "weights": WeightQuantization,
    "activations": ActivationQuantization,
}


def overridden(
    own: Section | None, changes: Mapping[str, object] | None, section: type[S]
) -> S | None:
    """Return a side's settings under an override, or None where it is left float."""
    if changes is None:
        return None
    base = own.model_dump(exclude_none=True) if own is not None else {}
    return section.model_validate(_merge(base, changes))


def _merge(base: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return settings under an override.

    A blend and an estimator take each other's place, but where the settings have both of them.
    """
    one, other = (base.get(key) is not None for key in ("blend", "estimator"))
    dropped = {} if one and other else {"blend": "estimator", "estimator": "blend"}
    gone = {dropped[key] for key in dropped if changes.get(key) is not None}
    kept = {k: v for k, v in base.items() if v is not None and k not in gone}
    return {**kept, **changes}


def _override_problems(
    place: str,
    section: type[Section],
    base: Mapping[str, object],
    changes: Mapping[str, object],
) -> list[Problem]:
    """Return what is wrong with one side of one override, which stands at `place`."""
    try:
        section.model_validate(_merge(base, changes))
    except ValidationError as error:
        inner = problems_of(error, section)
        return [(f"{place}.{key}".rstrip("."), why) for key, why in inner]
    return []

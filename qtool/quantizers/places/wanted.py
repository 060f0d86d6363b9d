"""What a recipe wants of the layers and of the values of a network."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from pydantic import ValidationError

from qtool.limits import READERS_DISAGREE
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import DEFAULT, FOUND, RECOMMENDED, TRAINED
from qtool.problems import Problem, did_you_mean, report, shown
from qtool.quantizers.places.placement import Use
from qtool.settings.quantization import Override, Quantization, of_sites, overridden
from qtool.settings.section import Choice, problems_of
from qtool.settings.tensors import ActivationQuantization

FINE = 8  # bits of images, and of what gates and norms read


@dataclass(frozen=True)
class LayerWants:
    """What one layer is to have.

    Attributes:
        weights: whether its weight is quantized.
        inputs: how what it reads is quantized; None for float.
        where: where that stands: overrides.N or quantization.
        says_bits: whether an override gives its input bits of its own.
        says_range: whether the recipe says the range of its input, or leaves it open.
    """

    weights: bool
    inputs: ActivationQuantization | None
    where: str = "quantization"
    says_bits: bool = False
    says_range: bool = True

    @property
    def is_integer(self) -> bool:
        """Tell whether it computes in integers."""
        return self.weights and self.inputs is not None

    @property
    def at_value(self) -> ActivationQuantization | None:
        """Return how it wants the values it reads, where it leaves the quantizer to their maker."""
        return self.inputs if self.inputs and self.inputs.place == "every_value" else None


def wants_of(
    settings: Quantization, names: Iterable[str], given: Quantization | None = None
) -> dict[str, LayerWants]:
    """Return what a recipe wants of layers; those that stay float on both sides are left out.

    Args:
        settings: the recipe's, each with a range.
        names: of layers.
        given: the same as the recipe says it, which may leave ranges open; None: it leaves none.
    """
    found: dict[str, LayerWants] = {}
    for name in names:
        weights, inputs, where = settings.for_layer(name)
        says_bits = "bits" in _changes(settings.override_of(name))
        if weights is not None or inputs is not None:
            said = (given or settings).for_layer(name)[1]
            says_range = said is not None and said.range.name != DEFAULT
            found[name] = LayerWants(weights is not None, inputs, where, says_bits, says_range)
    return found


@dataclass(frozen=True)
class ValueWants:
    """What one value is to have.

    Attributes:
        settings: as the quantizer shall have them.
        where: where that stands: overrides.N or quantization.
        by_site: whether an override speaks of the value itself.
        note: what of the recipe was taken otherwise, and why.
    """

    settings: ActivationQuantization
    where: str = "quantization"
    by_site: bool = False
    note: str = ""


class Wanted:
    """What a recipe wants, asked by the names of layers and of sites."""

    def __init__(self, settings: Quantization, layers: Mapping[str, LayerWants]) -> None:
        self._settings, self.layers = settings, layers
        said = [settings.activations, *(wants.at_value for wants in layers.values())]
        self._usual = next((s for s in said if s and s.place == "every_value"), None)

    @property
    def at_values(self) -> bool:
        """Tell whether anything is to be quantized where values are made."""
        return self._usual is not None

    def left_float(self, names: Sequence[str]) -> str | None:
        """Return where a recipe leaves the value of these sites float; None where it does not."""
        if (found := self._settings.override_of(*names)) is None:
            return None
        where, override = found
        says = "activations" in override.model_fields_set
        return where if says and override.activations is None else None

    def value(
        self,
        names: Sequence[str],
        use: Use,
        readers: Sequence[str],
        *,
        fine: bool = False,
        positive: bool = False,
    ) -> ValueWants:
        """Return what a value is to have.

        Args:
            names: the sites that it goes by: where its quantizer stands, first, and its chain.
            use: who reads it.
            readers: the layers among them that want a quantizer at its maker.
            fine: a gate or a norm reads it, too.
            positive: it is never below 0.

        Raises:
            ModelError: If layers want different things of it, and no override decides.
            RecipeError: If what an override of the value says does not go with the rest.
        """
        found = self._settings.override_of(*names)
        wanted = self._of_readers(names[0], use, readers, decided=found is not None)
        base, note = _fitted(wanted.settings, use, fine=fine, positive=positive)
        if use == "image" and not any(self.layers[n].says_range for n in readers or self.layers):
            base = _found(base)
        if found is None:
            return replace(wanted, settings=base, note=note)
        where, override = found
        changes = dict(override.activations or {})
        if use == "join" and "join_bits" in changes:
            changes.setdefault("bits", changes["join_bits"])
        try:
            made = overridden(base, changes, ActivationQuantization)
        except ValidationError as error:
            problems = problems_of(error, ActivationQuantization)
            places = [(f"{where}.activations.{key}", why) for key, why in problems]
            raise report("quantization", places) from error
        assert made is not None
        made = _half_to_even(made) if use == "join" else made
        return ValueWants(made, where, by_site=True, note="" if "range" in changes else note)

    def requantizes(self, layer: str, use: Use, value: ValueWants) -> bool:
        """Tell whether a layer rounds what it reads again, to its own bits or by its own range.

        It does so where it wants fewer bits than the value has; more would gain nothing.
        """
        wants, usual = self.layers[layer], self._usual_of(use)
        own = wants.inputs
        assert own is not None
        if use == "layers" or (use == "image" and (value.by_site or not wants.says_bits)):
            return False
        differs = (own.grid, own.range) != (usual.grid, usual.range)
        return own.bits < value.settings.bits or (differs and wants.where != "quantization")

    def _of_readers(
        self, site: str, use: Use, readers: Sequence[str], *, decided: bool
    ) -> ValueWants:
        """Return what those who read a value want of it; `decided` where an override decides."""
        wanted = {name: self._wanted_by(name, use) for name in readers}
        if not wanted or decided:
            usual = self._usual_of(use)
            return ValueWants(next(iter(wanted.values()), usual), "quantization")
        first, settings = next(iter(wanted.items()))
        for other, differing in wanted.items():
            if differing != settings:
                how = difference(settings, differing)
                raise READERS_DISAGREE.error(layer=first, other=other, site=site, how=how)
        return ValueWants(settings, self.layers[first].where if use != "join" else "quantization")

    def _wanted_by(self, layer: str, use: Use) -> ActivationQuantization:
        wants = self.layers[layer]
        assert wants.inputs is not None
        if use == "join":  # the layer rounds it again; it says only how fine it is to be
            return self._usual_of(use).model_copy(update={"bits": wants.inputs.join_bits})
        same = {"join_bits": self._usual_of(use).join_bits}  # says nothing of this value
        if use == "image" and not wants.says_bits:
            same["bits"] = FINE
        return wants.inputs.model_copy(update=same)

    def _usual_of(self, use: Use) -> ActivationQuantization:
        usual = self._usual
        assert usual is not None, "only asked where something is to be quantized"
        bits = {"image": FINE, "join": usual.join_bits, "layers": usual.bits}
        return usual.model_copy(update={"bits": bits[use]})


def _changes(found: tuple[str, Override] | None) -> Mapping[str, object]:
    """Return what an override says of activations."""
    return (found[1].activations or {}) if found is not None else {}


def _fitted(
    wanted: ActivationQuantization, use: Use, *, fine: bool, positive: bool
) -> tuple[ActivationQuantization, str]:
    """Return settings without what is for the inputs of layers alone, and what that was.

    What is never below 0, or what layers alone read, takes any grid that the recipe names.
    """
    update: dict[str, object] = {"bits": max(wanted.bits, FINE) if fine else wanted.bits}
    note = ""
    if use == "join":
        wanted = _half_to_even(wanted)
    if use != "layers" and (use == "join" or wanted.bits > 1):
        if wanted.estimator and ESTIMATORS.facts(wanted.estimator.name).family == "sign":
            update["estimator"] = Choice(name="straight_through")
        if wanted.grid == "mid_rise" or (wanted.grid == "unsigned" and not positive):
            update["grid"] = "auto"
    if wanted.of_range.unsigned and not positive and update.get("grid", wanted.grid) != "unsigned":
        name = TRAINED if wanted.blend is None else RECOMMENDED["blend"][0]
        update["range"] = Choice(name=name)
        note = f"range {name}, since {wanted.range.name} is for values that are never below 0"
    return wanted.model_copy(update=update), note


def _found(settings: ActivationQuantization) -> ActivationQuantization:
    """Return settings of an image whose range is open: it is found in the first values.

    A scale that learns would cost the gradient by every pixel, about 4 % of a step of ResNet-18,
    and what images are does not change. A zero point that learns with it is a parameter which older
    states have, and stays.
    """
    if settings.range.name != TRAINED or settings.grid == "asymmetric":
        return settings
    return settings.model_copy(update={"range": Choice(name=FOUND)})


def _half_to_even(settings: ActivationQuantization) -> ActivationQuantization:
    """Return settings of what joins read: their kernels round to nearest."""
    if settings.rounding != "ceil":
        return settings
    return settings.model_copy(update={"rounding": "half_to_even"})


def difference(one: ActivationQuantization, other: ActivationQuantization) -> str:
    """Return the first key that differs, with both values."""
    a, b = one.model_dump(), other.model_dump()
    key = next(key for key in a if a[key] != b[key])
    return f"{key}: {getattr(one, key)} and {getattr(other, key)}"


def pattern_problems(
    settings: Quantization, sites: Collection[str], placed: Collection[str]
) -> list[Problem]:
    """Return the override patterns of sites that match none, or none that has a quantizer.

    Args:
        settings: the recipe's.
        sites: all that there are.
        placed: those that a quantizer stands behind, or that are part of what it does.
    """
    found: list[Problem] = []
    for index, override in enumerate(settings.overrides):
        for pattern in filter(of_sites, override.patterns):
            matched = [site for site in sites if fnmatchcase(site, pattern)]
            why = f"{shown(pattern)} matches no site{did_you_mean(pattern, sites)}"
            if matched:
                why = f"no quantizer stands at {matched[0]}, which {shown(pattern)} matches"
            if not matched or (override.activations and not set(matched) & set(placed)):
                found.append((f"overrides.{index}.match", why))
    return found

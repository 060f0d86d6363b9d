"""The recipe: everything a run depends on, checked in full before anything is built."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, field_validator, model_validator

from qtool.data.sources import SYNTHETIC
from qtool.numerics.coarse_gradient import CLOSED_FORMS
from qtool.numerics.ranges import TRAINED
from qtool.problems import Problem, ProblemsError
from qtool.recipe.data import Data
from qtool.recipe.model import Model
from qtool.recipe.places import section_at
from qtool.recipe.training import Training
from qtool.settings.quantization import Override, Quantization
from qtool.settings.section import Section
from qtool.settings.user_parts import is_users
from qtool.training.losses import LOSSES

BINARY = {  # what makes 1 of x > 0 and 0 of the rest
    "bits": 1,
    "grid": "unsigned",
    "rounding": "ceil",
    "place": "relu_outputs",
    "range": {"name": "fixed", "scale": 1.0},
}


class Recipe(Section):
    """One run, from data to checkpoint."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides initial weights, the order of samples and their augmentation."""

    model: Model
    """The network."""

    data: Data
    """The images."""

    quantization: Quantization = Quantization()
    """What is quantized, and how; absent: a float run."""

    training: Training
    """How long and how fast to train."""

    @field_validator("quantization", mode="before")
    @classmethod
    def _null_is_float(cls, value: object) -> object:
        return {} if value is None else value

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        """Check what one section asks of another."""
        model, data, training = self.model, self.data.name, self.training
        found: list[Problem] = []
        if data in SYNTHETIC and model.name != "two_linear_layers":
            found.append(("model.name", f"{data} has no pictures; choose two_linear_layers"))
        if data == "gaussian_teacher" and training.loss.name != "squared_error":
            found.append(("training.loss", "its targets are numbers; choose squared_error"))
        if data in SYNTHETIC and isinstance(self.data.augment, list) and self.data.augment:
            found.append(("data.augment", f"{data} has no pictures to vary"))
        for asked, what, fitting in (
            (self.data.several, "its images may have several classes", _losses(shares=False)),
            (self.data.mixes, "mixup and cutmix make shares of classes", _losses(shares=True)),
        ):
            known = set(LOSSES.names()) - set(fitting)  # a user's takes what the user says
            if asked and training.loss.name in known and not is_users(training.loss.name):
                found.append(("training.loss", f"{what}; choose {' or '.join(fitting)}"))
        given = "model.weights: none" if model.weights != "none" else ""
        if model.start != "random" and (why := self._why_no_student() or given):
            found.append(("model.start", f"{model.start} takes {why}"))
        shares = training.gradient_accumulation
        if self.data.batch_size % shares:
            why = f"{self.data.batch_size} is not divisible by training.gradient_accumulation"
            found.append(("data.batch_size", f"{why}; choose a multiple of {shares}"))
        why = self.why_no_closed_form()
        if not (why or self.closed_form):
            why = f"an estimator of activations among {', '.join(CLOSED_FORMS)}"
        if training.gradient == "population" and why:
            found.append(("training.gradient", f"population takes {why}"))
        if training.early_stopping is not None and not self.data.holdout:
            why = "epochs are judged by images that are held out; set data.holdout, such as 0.1"
            found.append(("training.early_stopping", why))
        weights = self.quantization.weights
        if training.cage is not None and weights is not None and weights.of_range.squashes:
            why = f"{weights.range.name} changes weights before they are rounded; leave it out"
            found.append(("training.cage", why))
        untaught = training.distillation is not None and training.teacher is None
        if untaught and model.weights == "none":
            why = "its teacher is the float network with model.weights, and there are none"
            right = "set model.weights, or training.teacher: {name: ..., weights: ...}"
            found.append(("training.distillation", f"{why}; {right}"))
        found += [(f"training.{key}", clash) for key, clash in training.clashes()]
        if found:
            raise ProblemsError(found)
        return self

    def _why_no_student(self) -> str:
        """Return what the student of a teacher like itself takes, "" where the network is one."""
        if self.model.name != "two_linear_layers" or self.data.name != "gaussian_teacher":
            return "model.name: two_linear_layers with data.name: gaussian_teacher"
        one = self.model.parameter("hidden", 1) == 1
        if not one or self.model.parameter("output", "trained") != "trained":
            return "model.hidden: 1 and model.output: trained"
        return ""

    def why_no_closed_form(self) -> str:
        """Return what the closed forms of arXiv:1903.05662 take, "" where they describe the run."""
        if why := self._why_no_student():
            return why
        side = self.quantization.for_layer
        inputs = side("second")[1]
        if side("first")[:2] != (None, None) or side("second")[0] is not None or inputs is None:
            return "float weights, and of the inputs only that of the layer `second` quantized"
        given = inputs.model_dump()
        if any(given[key] != value for key, value in BINARY.items()):
            return f"activations: {BINARY}".replace("'", "")
        return ""

    @property
    def closed_form(self) -> str | None:
        """Return the estimator of the activations where its expected gradient is known."""
        inputs = self.quantization.for_layer("second")[1]
        name = inputs.estimator.name if inputs is not None and inputs.estimator else ""
        return name if name in CLOSED_FORMS else None

    def without_budget(self) -> Self:
        """Return the recipe with the widths that it says, whatever a budget would choose."""
        kept = self.quantization.model_copy(update={"budget": None})
        return self.model_copy(update={"quantization": kept})

    def with_overrides(self, first: Sequence[Mapping[str, object]]) -> Self:
        """Return the recipe without a budget and with overrides before its own.

        Raises:
            ValueError: If they do not go with it.
        """
        overrides = [Override.model_validate(each) for each in first]
        given = self.quantization.model_dump() | {"budget": None}
        own = [override.model_dump() for override in (*overrides, *self.quantization.overrides)]
        kept = Quantization.model_validate(given | {"overrides": own})
        return self.model_copy(update={"quantization": kept})

    def as_dict(self) -> dict[str, object]:
        """Return the resolved recipe as plain data; loading it again gives an equal recipe."""
        return _without_none(self.model_dump(mode="python"))

    def identity(self, *, trains: bool = True) -> dict[str, object]:
        """Return what makes two runs the same: all but where data lies, who decodes, who is told.

        Those neither change a number nor what a folder's files hold. What training takes a range
        for that is not said is said here, unless nothing `trains`.
        """
        given = self.quantization
        trained = given.with_range(TRAINED) if trains else given
        data = self.model_copy(update={"quantization": trained}).as_dict()
        left_out = {"data": ("root", "workers"), "training": ("scalars",)}
        return data | {
            section: {k: v for k, v in section_at(data, section).items() if k not in keys}
            for section, keys in left_out.items()
        }


def _losses(*, shares: bool) -> list[str]:
    """Return the losses that take several classes of an image, or also those of shares of them."""
    facts = {name: LOSSES.facts(name) for name in LOSSES.names()}
    return [name for name, f in facts.items() if f.several or (shares and f.takes_shares)]


def _without_none(data: Mapping[str, object]) -> dict[str, object]:
    """Drop absent keys, but keep the nulls of an override, which mean float."""
    return {
        key: value if key == "overrides" else _inner(value)
        for key, value in data.items()
        if value is not None
    }


def _inner(value: object) -> object:
    if isinstance(value, dict):
        return _without_none(value)
    return [_inner(item) for item in value] if isinstance(value, list) else value

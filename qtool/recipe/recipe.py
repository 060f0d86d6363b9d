"""The recipe: everything a run depends on, checked in full before anything is built."""

from abc import abstractmethod
from collections.abc import Mapping
from difflib import get_close_matches
from math import inf
from typing import Annotated, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)

from qtool.data.datasets import DATASETS
from qtool.data.sources import SYNTHETIC
from qtool.models.vision import model_problems
from qtool.numerics.coarse_gradient import CLOSED_FORMS
from qtool.numerics.schedules import SCHEDULES
from qtool.problems import Problem, ProblemsError, did_you_mean, shown
from qtool.recipe.places import section_at
from qtool.settings.choices import number_is_constant, schedule_problems
from qtool.settings.quantization import Quantization
from qtool.settings.section import Checked, Choice, Named, Section, attempt, finite, in_registry
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS


def _check_rate(name: str, params: Mapping[str, object]) -> Checked:
    """Check a learning rate's warmup, and that the rate is never negative or infinite."""
    own = {key: value for key, value in params.items() if key != "warmup"}
    warmup = params.get("warmup", 0.0)
    if not finite(warmup) or not 0.0 <= warmup < 1.0:
        why = f"{shown(warmup)} is not a share of training, 0 <= warmup < 1"
        return Checked([("warmup", why)], own)
    return Checked(schedule_problems(name, own, _wrong_rate) if name in SCHEDULES else [], own)


def _wrong_rate(value: float) -> str | None:
    """Say what is wrong with a value of the learning rate, if anything is."""
    if 0 <= value < inf:
        return None
    return f"the learning rate becomes {value:g}; it must stay finite and >= 0"


BINARY = {  # what makes 1 of x > 0 and 0 of the rest
    "bits": 1,
    "grid": "unsigned",
    "rounding": "ceil",
    "place": "relu_outputs",
    "range": {"name": "fixed", "scale": 1.0},
}
OptimizerChoice = Annotated[Choice, in_registry(OPTIMIZERS)]
LossChoice = Annotated[Choice, in_registry(LOSSES)]
LearningRateChoice = Annotated[Choice, in_registry(SCHEDULES, also=_check_rate)]


class _NamedSection(Named, Section):
    """A section that names one of a family."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    @abstractmethod
    def _named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return what is wrong with the name and its parameters."""

    @model_validator(mode="wrap")
    @classmethod
    def _known(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check fields, name and parameters, and report what is wrong with any of them at once."""
        made, given, found = attempt(cls, data, handler)
        if isinstance(given, dict) and isinstance(name := given.get("name"), str):
            places = [place for place, _ in found]
            params = {str(k): v for k, v in given.items() if str(k) not in ("name", *places)}
            for place, why in cls._named_problems(name, params):
                if "has no parameter" in why and get_close_matches(place, cls.model_fields):
                    why = f"unknown key{did_you_mean(place, cls.model_fields)}"
                found.append((place or "name", why))
        if found or made is None:
            raise ProblemsError(found)
        return made


class Model(_NamedSection):
    """The network."""

    name: str
    """A torchvision classification model by its own name, or one of qtool's."""

    weights: str = "none"
    """`none`, a torchvision weight name such as DEFAULT, or a file: a state_dict, or a run's
    checkpoint.pt or model.safetensors."""

    initialization: Literal["default", "he_uniform"] = "default"
    """he_uniform draws the weights of quantized layers from U(-m, m), m = sqrt(6 / fan_in)."""

    start: Literal["random", "near_spurious_minimum"] = "random"
    """near_spurious_minimum puts two_linear_layers beside the local minimum that is not the teacher
    of gaussian_teacher."""

    @classmethod
    def _named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        found = []
        drawn = params.get("initialization", "default") != "default"
        if drawn and params.get("weights", "none") != "none":
            found.append(("initialization", "excludes given weights; leave out one of the two"))
        own = {k: v for k, v in params.items() if k not in ("start", "initialization")}
        return found + model_problems(name, own)


class Data(_NamedSection):
    """The images."""

    name: str
    """A data set by its name, such as digits or image_folder."""

    batch_size: int = Field(default=64, ge=1)
    """Images in a training step, of all processes that train together."""

    image_size: int | None = Field(default=None, ge=4, le=2048)
    """Height and width in pixels that images are resized to; default: the data set's own."""

    train_samples: int | None = Field(default=None, ge=1)
    """Train on the first so many of a seeded shuffle; default: all."""

    repeats: int = Field(default=1, ge=1, le=100_000)
    """Passes over the training images in an epoch; for sets of a few batches."""

    augment: bool = True
    """Random crops and flips, as the data set's own recipe has them."""

    root: str | None = None
    """Folder of the data sets; default: QTOOL_DATA, else ~/.cache/qtool/data."""

    workers: int = Field(default=2, ge=0, le=256)
    """Processes that decode images which do not fit into memory."""

    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images that is held out: each epoch is judged by them, and by the
    validation set the last one only."""

    @classmethod
    def _named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        own = {key: value for key, value in params.items() if key not in cls.model_fields}
        return DATASETS.problems(name, own)


class Training(Section):
    """How long and how fast to train."""

    epochs: int = Field(ge=1, le=100_000)
    """Passes over the training set."""

    optimizer: OptimizerChoice = Choice(name="sgd")
    """What turns gradients into steps."""

    learning_rate: LearningRateChoice
    """Schedule of the learning rate, step by step; a plain number stays constant."""

    loss: LossChoice = Choice(name="cross_entropy")
    """What training makes small."""

    gradient: Literal["sampled", "population"] = "sampled"
    """population takes expected gradients, in closed form; two_linear_layers on gaussian_teacher
    only."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of layers; rounding to the grid is always decided in float32."""

    compile: bool = False
    """Compile the rounding and its gradients, on CUDA the whole model; takes a compiler."""

    cuda_graph: bool = False
    """On CUDA, capture the training step once and replay it: for small networks."""

    channels_last: bool = True
    """Keep images with their channels innermost, which is faster."""

    calibration_batches: int = Field(default=8, ge=1)
    """Batches that set the activation ranges before the first step."""

    batch_norm_batches: int | None = Field(default=None, ge=0)
    """Training batches that batch norm statistics are estimated on again after the last step;
    default: 100 where there is a blend, else none."""

    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints; the last epoch always has one."""

    sync_batch_norm: bool = False
    """Where several processes train together, batch norms see the images of all of them."""

    gradient_accumulation: int = Field(default=1, ge=1, le=100_000)
    """Passes whose gradients are added up for a step, each on so many shares of the batch."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _number_is_constant(cls, value: object) -> object:
        return number_is_constant(value)


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

    def as_dict(self) -> dict[str, object]:
        """Return the resolved recipe as plain data; loading it again gives an equal recipe."""
        return _without_none(self.model_dump(mode="python"))

    def identity(self) -> dict[str, object]:
        """Return what makes two runs the same: all but where data lies and who decodes it."""
        data = self.as_dict()
        own = section_at(data, "data").items()
        return data | {"data": {k: v for k, v in own if k not in ("root", "workers")}}


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

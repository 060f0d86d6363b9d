"""The section `training`: how long, how fast, and by which loss and optimizer."""

from collections.abc import Mapping
from math import inf
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from qtool.numerics.schedules import SCHEDULES, wrong_warmup
from qtool.problems import Problem, ProblemsError, either, shown
from qtool.recipe.teacher import Distillation, Teacher
from qtool.settings.choices import StrengthChoice, number_is_constant, schedule_problems
from qtool.settings.section import Checked, Choice, Section, finite, in_registry
from qtool.settings.user_parts import is_users
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS


def _check_rate(name: str, params: Mapping[str, object]) -> Checked:
    """Check a learning rate's warmup, and that the rate is never negative or infinite."""
    own = {key: value for key, value in params.items() if key != "warmup"}
    if why := wrong_warmup(params.get("warmup", 0.0)):
        return Checked([("warmup", why)], own)
    return Checked(schedule_problems(name, own, _wrong_rate) if name in SCHEDULES else [], own)


def _wrong_rate(value: float) -> str | None:
    """Say what is wrong with a value of the learning rate, if anything is."""
    if 0 <= value < inf:
        return None
    return f"the learning rate becomes {value:g}; it must stay finite and >= 0"


def _check_target(name: str, params: Mapping[str, object]) -> Checked:
    """Check that a schedule stays within the shares of codes that may change in a step."""

    def wrong(value: float) -> str | None:
        return None if 0 <= value <= 1 else f"becomes {value:g}; it is a share, from 0 to 1"

    return Checked(schedule_problems(name, params, wrong), params)


OptimizerChoice = Annotated[Choice, in_registry(OPTIMIZERS, unless=is_users)]
LossChoice = Annotated[Choice, in_registry(LOSSES, unless=is_users)]
LearningRateChoice = Annotated[Choice, in_registry(SCHEDULES, also=_check_rate)]
TargetChoice = Annotated[
    Choice, in_registry(SCHEDULES, also=_check_target), BeforeValidator(number_is_constant)
]


class EarlyStopping(Section):
    """When training is to end before all epochs are done."""

    patience: int = Field(ge=1, le=100_000)
    """Epochs in a row that need not be better than the best before them."""

    min_delta: float = Field(default=0.0, ge=0)
    """How much better an epoch must be to count: in accuracy, 0..1, or in loss without classes."""


class TransitionRate(Section):
    """Which share of codes is to change, by which the rate of quantized weights goes."""

    target: TargetChoice
    """Share of the codes of weights that is to change in a step: a number or a schedule."""

    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Weight of what was before in the moving average of the share that does change."""

    start: float | None = Field(default=None, gt=0)
    """Learning rate that quantized weights begin at; default: the largest of learning_rate."""

    gain: float | None = Field(default=None, gt=0)
    """What the rate changes by in a step, per share that is missing; default: start."""


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

    clip_gradient: float | None = Field(default=None, gt=0)
    """Shorten gradients whose norm, of all parameters together, is above it."""

    ema: float | None = Field(default=None, ge=0, lt=1)
    """Decay of an average of the weights, scales and batch norm statistics over steps: it is what
    is judged, converted and exported."""

    freeze: list[str] = Field(default_factory=list)
    """Patterns of names of modules that do not train, with all inside them; batch norms among them
    keep their statistics."""

    early_stopping: EarlyStopping | None = None
    """End training where the images held out no longer tell of a better epoch; takes
    data.holdout."""

    validation_top5: bool = False
    """Tell the share of validation images whose class is among the five largest logits, too."""

    scalars: list[Literal["csv", "tensorboard", "wandb"]] = Field(default_factory=lambda: ["csv"])
    """Where figures of each epoch go beside metrics.jsonl; csv is always there, the others are
    optional packages."""

    class_weights: Literal["balanced"] | list[float] | None = None
    """How much an image counts in training, by its class: a list of numbers, or balanced, so that
    classes count alike."""

    transition_rate: TransitionRate | None = None
    """Let quantized weights train at the rate at which a given share of their codes changes."""

    cage: StrengthChoice | None = None
    """Strength of a pull on each quantized weight towards its level, beside the optimizer's step,
    which is times the learning rate: a number or a schedule."""

    sharpness_aware: float | None = Field(default=None, gt=0)
    """Take gradients where quantized weights, biases and norms are moved so far along them; two
    passes for a step."""

    teacher: Teacher | None = None
    """The trained network that distillation follows."""

    distillation: Distillation | None = None
    """What the teacher adds to the loss."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _are_class_weights(cls, value: object) -> object:
        if value is None or value == "balanced":
            return value
        listed = value if isinstance(value, list) else []
        if any(listed) and all(finite(number) and number >= 0 for number in listed):
            return [float(number) for number in listed]
        why = f"{shown(value)} is neither balanced nor a list of numbers from 0 on, a class each"
        raise ProblemsError([("", why)])

    def clashes(self) -> list[Problem]:
        """Return what two keys of the section cannot both say."""
        found: list[Problem] = []
        if self.gradient == "population" and self.clip_gradient is not None:
            why = "expected gradients are taken as they are; leave it out with gradient: population"
            found.append(("clip_gradient", why))
        found += self._clashes_of_aids()
        chosen = self.optimizer.name
        if self.cuda_graph and not OPTIMIZERS.facts(chosen).graphed:
            found.append(("cuda_graph", f"{chosen} cannot be captured in a graph; leave it out"))
        if self.class_weights is not None and not LOSSES.facts(self.loss.name).weighs:
            known = either([name for name in LOSSES.names() if LOSSES.facts(name).weighs])
            found.append(("class_weights", f"{self.loss.name} takes none; choose {known}"))
        if self.validation_top5 and LOSSES.facts(self.loss.name).several:
            found.append(("validation_top5", "an image may have several classes; leave it out"))
        return found + self._distillation_problems()

    def _distillation_problems(self) -> list[Problem]:
        """Return what does not go with a teacher."""
        chosen = self.distillation
        if chosen is None:
            why = "it teaches nothing without training.distillation; add that, such as {loss: kl}"
            return [] if self.teacher is None else [("teacher", why)]
        found = [(f"distillation.{key}", why) for key, why in chosen.problems()]
        if self.gradient == "population":
            why = "expected gradients are of one loss; leave it out with gradient: population"
            found.append(("distillation", why))
        if self.cuda_graph:
            why = "a graph that captures a teacher has not been tried; leave it out"
            found.append(("cuda_graph", f"with a distillation: {why}"))
        if self.compile and chosen.loss == "features":
            why = "what blocks return is noted by hooks, which no compiler traces"
            found.append(("compile", f"with distillation.loss: features: {why}; leave it out"))
        if chosen.loss == "kl" and LOSSES.facts(self.loss.name).several:
            why = "softens outputs of which one class is right, and an image may have several"
            found.append(("distillation.loss", f"kl {why}; choose features"))
        return found

    def _clashes_of_aids(self) -> list[Problem]:
        """Return what does not go with what takes part in a step beside the optimizer."""
        aids = ("transition_rate", "cage", "sharpness_aware")
        given = [key for key in aids if getattr(self, key) is not None]
        found: list[Problem] = []
        if self.gradient == "population":
            why = "expected gradients are taken as they are; leave it out with gradient: population"
            found += [(key, why) for key in given]
        if self.cuda_graph and "transition_rate" in given:
            found.append(("cuda_graph", "transition_rate reads codes at each step; leave it out"))
        if "sharpness_aware" in given:
            why = "sharpness_aware changes weights between two passes; leave it out"
            found += [(key, why) for key in ("cuda_graph", "compile") if getattr(self, key)]
        return found

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _number_is_constant(cls, value: object) -> object:
        return number_is_constant(value)

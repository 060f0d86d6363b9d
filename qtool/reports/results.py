"""What the result files of a run hold: one type for each, which scripts and tables read alike.

A type's fields are the keys of its file, in the file's order. A key that was never set is absent,
null is null, and keys of a newer version are kept. To add a figure, add a field with its docstring
here (or in `exports`, `comparisons`, `inspections`), and its line to the face in `tables`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from qtool.errors import InputError
from qtool.files.json_data import read_json
from qtool.reports.comparisons import Comparison, Equivalence, UnfinishedComparison
from qtool.reports.exports import Export, UnprovenExport
from qtool.reports.health import Finding
from qtool.reports.improvements import Applied
from qtool.reports.layers import ExportedLayer, Layer, Site
from qtool.reports.result import Result, Seconds
from qtool.reports.sensitivity import ChosenWidths, MaxDrop, Sensitivity


class Profile(Result):
    """Where the time of a training step goes."""

    steps: int
    milliseconds: dict[str, float]
    """Phase -> its part of the whole step."""
    share: dict[str, float]
    step_milliseconds: float
    peak_memory_bytes: int | None


class Summary(Result):
    """summary.json: how far a run is, and how it does."""

    figures = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")

    status: Literal["running", "finished", "failed"]
    run: str
    epochs: int
    seconds: Seconds
    parameters: int
    weight_bits_mean: float
    validation_accuracy: float | None
    """Share of images, 0..1; null where labels are no classes."""
    validation_loss: float | None
    train_accuracy: float | None
    train_loss: float | None
    profile: Profile | None = None
    error: str | None = None
    health: list[Finding] = Field(default_factory=list)
    """What should be looked at once training is done."""
    holdout_accuracy: float | None = None
    """On training images that are held out; absent where none are."""
    holdout_loss: float | None = None
    validation_top5: float | None = None
    """Share of images whose class is among the five largest logits; absent unless asked for."""
    validation_f1: float | None = None
    """Of images that may have several classes, over all of these; absent of others."""
    holdout_f1: float | None = None
    stopped_early: bool | None = None
    """Training ended before all epochs were done, as the hold-out got no better; else absent."""


class EpochLine(Result):
    """A line of metrics.jsonl: one epoch."""

    epoch: int
    step: int
    """Training steps done."""
    train_loss: float
    train_accuracy: float | None
    learning_rate: float
    """Of the epoch's last step."""
    alpha: float | None = None
    """The smallest of all blends."""
    population_loss: float | None = None
    gradient_cosine: float | None = None
    largest_rise: float | None = None
    flip_ratio: dict[str, float] | None = None
    """Layer -> share of weight codes that change in a step."""
    oscillation_frequency: dict[str, float] | None = None
    frozen_share: dict[str, float] | None = None
    validation_loss: float | None
    """Null where images are held out, but in the last epoch."""
    validation_accuracy: float | None
    blended_validation_loss: float | None = None
    blended_validation_accuracy: float | None = None
    seconds: Seconds
    holdout_loss: float | None = None
    """On training images that are held out (data.holdout); absent where none are."""
    holdout_accuracy: float | None = None
    saturated_weights: dict[str, float] | None = None
    """Layer -> share of weights beyond the outermost levels of their grid, 0..1."""
    levels_in_use: dict[str, int] | None = None
    """Layer -> how many different codes its weight has."""
    sqnr: dict[str, float] | None = None
    """Layer -> its latent weight over what rounding changes, decibels:
    10 log10(sum w^2 / sum (w - w_hat)^2); a weight that is its own rounding has none."""
    weight_scale: dict[str, float] | None = None
    """Layer -> step of its weight, the mean over channels."""
    input_scale: dict[str, float] | None = None
    """Layer, ReLU or site -> step of the activations that are quantized there."""
    coarse_gradient_cosine: float | None = None
    """Between the gradient that training follows and that of the smoothed loss, estimated on a
    batch with a standard error of about 0.18; absent unless asked for."""
    saturated_activations: dict[str, float] | None = None
    """Layer, ReLU or site -> share of its values beyond the outermost levels, on that batch."""
    validation_top5: float | None = None
    """Share of images whose class is among the five largest logits; absent unless asked for."""
    validation_f1: float | None = None
    """Of images that may have several classes, over all of these; absent of others."""
    holdout_f1: float | None = None
    latent_learning_rate: float | None = None
    """Of quantized weights after the epoch's last step, with training.transition_rate."""
    transition_rate: float | None = None
    """Share of codes that changes in a step, by its moving average there."""
    label_loss: float | None = None
    """The recipe's loss in training, of which train_loss has the share that is not the teacher's;
    absent without a teacher."""
    distillation_loss: float | None = None
    """What the teacher says, of which train_loss has its share."""


class ExportDescription(Result):
    """What an ONNX file says of itself, beside its recipe and architecture."""

    target: str
    ceil: Literal["exact", "shifted"]
    layers: list[ExportedLayer]
    table_bytes: int
    """Of the tables that codes are unpacked by, which all layers share."""
    left_float: dict[str, str]
    notes: list[str] = Field(default_factory=list)
    """What a user should know."""
    inputs: list[str] = Field(default_factory=lambda: ["images"])
    """Names, in order."""
    outputs: list[str] = Field(default_factory=lambda: ["logits"])
    may_saturate: list[str] = Field(default_factory=list)
    """Layers in integer kernels that may saturate on processors without VNNI."""
    unproven: str = ""
    """Why the file was not run, "" where it was."""


class Proof(Result):
    """How far an integer model agrees with the fake-quantized one that it was made of."""

    images: int
    layers_compared: int
    largest_layer_difference: float
    """Of a layer's outputs on the same input, as a share of its largest output."""
    sigma: float
    """Standard deviation of the outputs; of several, those of the one that agrees least count."""
    top1_agreement: float | None
    """Null where the outputs are no logits."""
    clear_share: float | None
    """Share of images whose two best logits lie at least 0.1 sigma apart."""
    clear_agreement: float | None
    max_abs_difference: float
    median_abs_difference: float
    sites_compared: int = 0
    """Call sites where a value is rounded."""
    largest_share_off: float = 0.0
    """Of a site's values on the same inputs, the share that lies one step apart: near ties."""


class NoSaturation(Result):
    """What it cost that no layer can saturate any more on processors without VNNI."""

    channels: dict[str, int]
    """Layer -> how many were rounded anew; only layers that had any."""
    validation_accuracy_before: float | None
    """Of the fake-quantized network as it was."""
    validation_accuracy_after: float | None
    """Of the integer model."""


class Conversion(Result):
    """convert.json: what a conversion cost."""

    float_bytes: int
    integer_bytes: int
    validation_accuracy_before: float | None
    """Of the fake-quantized network."""
    validation_accuracy_after: float | None
    validation_images: int
    max_abs_difference: float
    """Of logits."""
    layers: list[Layer]
    left_float: dict[str, str]
    """Layer -> why."""
    notes: list[str]
    integer_model: str
    validation_accuracy_float: float | None
    """Of the float network, where nothing was trained."""
    proof: Proof | None = None
    """Absent before it was kept."""
    not_folded: dict[str, str] = Field(default_factory=dict)
    """Norm that stays beside the layers -> why."""
    health: list[Finding] = Field(default_factory=list)
    """What should be looked at in the fake-quantized network."""
    no_saturation: NoSaturation | None = None
    """Absent where it was not asked for."""
    sites: list[Site] = Field(default_factory=list)
    """Where values are rounded that no layer makes."""
    float_sites: dict[str, str] = Field(default_factory=dict)
    """Call site whose result, or what it could compute in integers, stays float -> why."""
    method: str | None = None
    """How a network that was not trained was improved; absent of a run."""
    calibration_images: int | None = None
    """That it was calibrated and improved with; absent of a run."""
    applied: list[Applied] = Field(default_factory=list)
    """What was done to it, in order; absent of a run."""
    chosen_widths: ChosenWidths | None = None
    """By the recipe's budget; absent where it has none."""
    max_drop: MaxDrop | None = None
    """What `--max-drop` found; absent where it was not asked for."""


class MovedLayer(Result):
    """What became of a layer on its way to straight_through."""

    layer: str
    estimator: str
    alpha: float
    """Factor of the learning rate."""
    largest_shift: float
    """Of a weight, in steps."""


class StraightThrough(Result):
    """convert.json of `--to straight_through`."""

    to: Literal["straight_through"]
    source: str
    run: str
    optimizer: str
    epochs_done: int
    epochs: int
    max_abs_difference: float
    layers: list[MovedLayer]
    notes: list[str]


def read(path: Path) -> Result:
    """Return the result that a JSON file of a run or a comparison holds, whatever it is called.

    Raises:
        InputError: If it is missing, damaged, or holds no result of qtool.
    """
    data = read_json(path)
    for key, kind in _MARKS.items():
        if key in data:
            if kind is Comparison and data[key] == "equivalence":
                kind = Equivalence
            if kind is Export and "top1_agreement" not in data:
                kind = UnprovenExport
            return kind.of(data, path)
    raise InputError(f"{path}: no result of qtool; give a summary, convert, export or comparison")


def read_finished(path: Path) -> Result:
    """Return the result that a JSON file holds, which is not one of a comparison still going on.

    Raises:
        InputError: If it is missing, damaged, not finished, or holds no result of qtool.
    """
    result = read(path)
    if isinstance(result, UnfinishedComparison):
        raise InputError(f"{path}: not the report of a finished comparison")
    return result


_MARKS: dict[str, type[Result]] = {  # a key -> the one kind of file that has it
    "partial": UnfinishedComparison,
    "kind": Comparison,
    "status": Summary,
    "to": StraightThrough,
    "integer_bytes": Conversion,
    "bits_per_weight_on_disk": Export,
    "error_quantized": Sensitivity,
}

"""What `qtool inspect` says of a file, and what a plan says of a network."""

from typing import Literal

from pydantic import Field

from qtool.reports.exports import FloatOperator
from qtool.reports.result import Result
from qtool.reports.results import Profile


class PlanRow(Result):
    """One layer of the printed plan: what happens to its weights and to its input."""

    name: str
    shape: list[int]
    weights: str
    """Width and grid, such as "4-bit narrow", or "float"."""
    weights_how: str
    """Range and estimator or blend, "" where float."""
    activations: str
    activations_how: str
    why: str
    """Why nothing is quantized, else ""."""
    note: str = ""
    """What else a user should know of the layer."""
    may_saturate: bool = False
    """By its widths, on processors without VNNI."""


class SiteRow(Result):
    """One value of a network, or one operator that stays float: what becomes of it."""

    site: str
    """BLOCK:FUNCTIONn: where its quantizer stands, or the operator."""
    made_by: str = ""
    """Layer or function, and what of the network the quantizer does for it."""
    read_by: list[str] = Field(default_factory=list)
    """Layers, and sites of operators that compute in integers."""
    grid: str
    """Width and grid, such as "8-bit unsigned", or "float"."""
    how: str = ""
    """Range and estimator or blend, "" where float."""
    group: str = ""
    """Another site, whose quantizer serves this one, too."""
    top: float | None = None
    """What a clip from 0 ends at, which is the quantizer's."""
    join: str = ""
    """How the operator that makes the value computes in integers, such as add."""
    rounded_again_by: list[str] = Field(default_factory=list)
    """Layers that want fewer bits than it has."""
    scale: str = ""
    why: str = ""
    """Why it stays float, else ""."""
    advice: str = ""
    """What would change that."""
    note: str = ""
    """What of the recipe does not fit it, and was taken otherwise."""


class InspectedLayer(Result):
    """One layer of a recipe's plan, of a run, or of a file: as much as each of them tells."""

    layer: str
    weight: str
    """Shape, as 64x3x3x3."""
    weights: str = ""
    input: str = ""
    how_weights: str = Field("", alias="how weights")
    how_input: str = Field("", alias="how input")
    weight_bits: int = Field(32, alias="weight bits")
    grid: str = ""
    input_bits: int = Field(32, alias="input bits")
    bytes: int = 0
    weight_scale: str = Field("", alias="weight scale")
    input_scale: str = Field("", alias="input scale")
    why_unfused: str = Field("", alias="why unfused")
    datatype: str = ""
    integer_kernel: bool = Field(default=False, alias="integer kernel")


class Inspection(Result):
    """What a recipe, run, integer model, ONNX file or file of weights holds: what each tells."""

    source: str
    kind: Literal["recipe", "run", "integer model", "ONNX model", "weights"]
    model: str = ""
    data: str = ""
    producer: str = ""
    opset: int = 0
    nodes: int = 0
    image_size: int = 0
    classes: int = 0
    status: Literal["running", "finished", "failed"] = "running"
    run: str = ""
    epochs: int = 0
    seconds: float | int = 0
    parameters: int = 0
    weight_bits_mean: float = 32.0
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    train_accuracy: float | None = None
    train_loss: float | None = None
    profile: Profile | None = None
    error: str | None = None
    file_bytes: int = 0
    annotations: int = 0
    layers: list[InspectedLayer] = Field(default_factory=list)
    left_float: dict[str, str] = Field(default_factory=dict)
    """Layer -> why."""
    notes: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    sites: list[SiteRow] = Field(default_factory=list)
    """Values with quantizers where they are made, and operators of them that stay float."""
    may_saturate: list[str] = Field(default_factory=list)
    """Layers that may on processors without VNNI: of a recipe or run by their widths, of an integer
    model by its codes, of an ONNX file those in integer kernels."""
    float_islands: list[FloatOperator] = Field(default_factory=list)
    """What an ONNX file computes in float between quantized operators, in ONNX Runtime."""
    repaired: str = ""
    """The file that a repair wrote."""
    repairs: list[str] = Field(default_factory=list)
    """What it did."""
    damaged: str = ""
    """What of an ONNX file is not what was written, and what to do."""


class Estimator(Result):
    """What there is to say of a gradient estimator at its default parameters."""

    name: str
    summary: str
    formula: str
    formula_lines: list[str]
    reference: str
    notes: list[str]
    parameters: dict[str, bool | int | float | str | None]
    may_be_scheduled: list[str]
    family: str
    in_class: bool
    """Of arXiv:2405.05171, judged inside the grid."""
    reason: str
    """Why it lies outside, else ""."""
    alpha: float | None
    lower: float | None
    upper: float | None
    in_class_with_bounds: bool
    reason_with_bounds: str


class EstimatorTable(Result):
    """Every gradient estimator."""

    kind: Literal["estimators"]
    estimators: list[Estimator]
    output: str | None = None
    """Where they were drawn."""

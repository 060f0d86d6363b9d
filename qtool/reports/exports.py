"""What export.json says: what a runtime made of a file, how far it agrees, and how fast it is."""

from typing import Literal

from pydantic import Field

from qtool.reports.health import Finding
from qtool.reports.result import Json, Result

WhyNot = Literal["not_installed", "refused", "failed"]
WeightForm = Literal["integer", "dequantized", "float"]


class RuntimeVersion(Result):
    """What a file was run in."""

    name: str
    version: str


class Agreement(Result):
    """How far a runtime and the integer model agree, over the validation images."""

    images: int
    sigma: float
    """Standard deviation of the integer model's logits."""
    top1_agreement: float | None
    """Null, as the next two, where outputs are no logits or all images give one constant."""
    clear_share: float | None
    """Share of images whose two best logits lie at least 0.1 sigma apart."""
    clear_agreement: float | None
    max_abs_difference: float
    median_abs_difference: float
    accuracy_integer: float | None
    accuracy_runtime: float | None
    disagreement: str
    """Why the two disagree, "" where they agree."""
    ceil_shifted_share: float | None = None
    """Share of input codes that a shift in place of ceil changes."""


class OutputAgreement(Result):
    """How far a runtime and the integer model agree on one output."""

    sigma: float
    """Standard deviation of the integer model's values."""
    max_abs_difference: float
    median_abs_difference: float
    """Over images, of the largest difference in each."""
    images: int = 0
    """Rows that were compared."""
    control_difference: float | None = None
    """The larger of the two controls, in the median over images; null without a control. Only an
    output that differs by more than three times as much as a control can disagree."""
    control_max_difference: float | None = None
    """The same, of the image that it is largest in."""


class Times(Result):
    """Median milliseconds for one batch, measured in turn."""

    float_: float = Field(alias="float")
    """Of the float model: the integer model with float layers in the place of its own."""
    exported: float
    static: float | None = None
    """Of the float model as the runtime's own quantization writes it; null unless measured."""


class TimesOnAllThreads(Times):
    """The same, where the runtime uses as many threads as it likes."""

    threads: int


class Latency(Times):
    """Median milliseconds of the thread for one image on one thread, measured in turn."""

    all_threads: TimesOnAllThreads | None = None
    """Null unless measured."""


class Control(Result):
    """How far a file's outputs move where its input is scaled by 1 + 1e-5.

    What float rounding alone can do to them is less than this: it moves values by 1e-7.
    """

    images: int
    max_abs_difference: float
    median_abs_difference: float
    """Over images, of the largest difference in each; of several outputs, of the first."""
    level_images: int = 0
    """How many the same file was run on without the runtime's optimizations; 0 where it was not."""
    level_max_abs_difference: float | None = None
    """Of the file's outputs with and without them, or of those without and the integer model's: of
    these two the smaller, for what only an optimization does wrong is no rounding."""
    level_median_abs_difference: float | None = None


class FloatOperator(Result):
    """An operator that the runtime computes in float between quantized ones."""

    operator: str
    """Of the runtime's graph."""
    name: str
    """The layer or the call that it comes from."""
    reason: str
    change: str
    """What in the recipe would change it."""
    by_design: bool = False
    """Whether no recipe could, nor should: LayerNorm, Softmax, GELU, and what lies between them."""


class Storage(Result):
    """What a file takes on disk, and what it was compared in."""

    bits_per_weight_on_disk: float
    quantized_weights: int
    file_bytes: int
    runtime: RuntimeVersion
    codes_compared: int


class EndsReport(Result):
    """What a file says that prepares pictures or gives shares, beside its network alone."""

    preprocess: bool
    """It takes decoded pictures, and prepares them."""
    softmax: bool
    """It gives `shares`, too."""
    images: int
    top1_agreement: float
    """With the integer model, on images that qtool prepares."""
    accuracy_runtime: float | None
    max_abs_difference: float
    """Of logits, from those of the network alone in the same runtime."""
    max_grey_difference: float | None
    """Of a value of a prepared picture, in levels of 255, from what qtool makes of it."""
    grey_difference_share: float | None
    """Of those values, half a level or more away."""
    disagreement: str
    """Why the file disagrees with its network alone, "" where it agrees."""
    same_images: int | None
    """How many it prepares to the very levels that qtool does."""
    same_agreement: float | None
    """Of those, top-1 agreement with the integer model."""


class OtherSizeReport(Result):
    """What a file whose height or width is open says of images in another size."""

    height: int
    width: int
    images: int
    top1_agreement: float | None
    """With the integer model; null where outputs are no logits."""
    max_abs_difference: float
    disagreement: str
    """Why the file disagrees with the integer model, "" where it agrees."""


class Export(Agreement, Storage):
    """export.json: what the runtime made of a file."""

    fused_share: float
    """Of layers, in integer kernels."""
    fused_layers: int
    quantized_layers: int
    latency_ms: Latency
    left_float: dict[str, str]
    file: str
    target: str
    weight_forms: dict[str, WeightForm] = Field(default_factory=dict)
    """Layer -> what the runtime computes with: codes, float32 made of them, or float weights."""
    inputs: list[str] = Field(default_factory=lambda: ["images"])
    outputs: dict[str, OutputAgreement] = Field(default_factory=dict)
    unproven: str = ""
    """Why the figures prove nothing, "" where they do."""
    notes: list[str] = Field(default_factory=list)
    """What a user should know."""
    health: list[Finding] = Field(default_factory=list)
    """What should be looked at in the file, and in how fast it is."""
    integer_share: float | None = None
    """Of convolutions, linear layers, additions, products, concatenations and poolings, in the
    runtime's integer kernels; absent in files of before."""
    integer_operators: int | None = None
    quantizable_operators: int | None = None
    why_slow: list[FloatOperator] = Field(default_factory=list)
    """What runs in float between quantized operators."""
    control: Control | None = None
    may_saturate: list[str] = Field(default_factory=list)
    """Layers in integer kernels that may saturate on processors without VNNI."""
    control_difference: float | None = None
    """Of the output that `max_abs_difference` is of: see its entry under `outputs`."""
    ends: EndsReport | None = None
    """Of a file that prepares pictures or gives shares; all else is of its network alone, except
    for `file_bytes`."""
    other_size: OtherSizeReport | None = None
    """Of a file whose height or width is open; all else is of images as the recipe has them."""


class UnprovenExport(Result):
    """export.json of a file that was not run, for the runtime of its target is not installed."""

    bits_per_weight_on_disk: float
    quantized_weights: int
    file_bytes: int
    left_float: dict[str, str]
    file: str
    target: str
    inputs: list[str]
    unproven: str
    """Why it was not run."""
    notes: list[str] = Field(default_factory=list)
    """What a user should know."""
    health: list[Finding] = Field(default_factory=list)
    """What should be looked at in the file."""
    may_saturate: list[str] = Field(default_factory=list)
    """Layers that may saturate on processors without VNNI."""


class NotExported(Result):
    """Why there is no file for a target."""

    error: str
    kind: WhyNot
    """The runtime is not installed, or too old; the target cannot hold the model; or the runtime
    disagrees with it, or cannot load the file."""


class AllExports(Result):
    """What was exported for each target."""

    targets: dict[str, Export | UnprovenExport | NotExported]

    def to_json(self) -> Json:
        """Return target -> its export.json, or the error."""
        return {name: made.to_json() for name, made in self.targets.items()}

    @property
    def failed(self) -> bool:
        """Whether some file is wrong, or none was written."""
        kinds = [
            made.kind if isinstance(made, NotExported) else "" for made in self.targets.values()
        ]
        return "failed" in kinds or "" not in kinds

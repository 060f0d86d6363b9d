"""What `qtool check` says of a recipe before it is trained, and what `qtool run` ends with."""

from pydantic import Field

from qtool.console import say, show, table
from qtool.reports.exports import Export, UnprovenExport
from qtool.reports.health import show_health
from qtool.reports.result import Result
from qtool.reports.results import Conversion, Summary
from qtool.reports.words import duration, number, percent, size


class CheckedLayer(Result):
    """One layer: what becomes of it, and what it computes for one image."""

    layer: str
    weight: str
    """Shape, as 64x3x3x3."""
    weights: str
    """Width and grid, or float."""
    input: str
    macs: int
    """Multiplications and additions for one image."""
    bit_operations: int
    """Those times the bits of a weight times the bits of an input; float counts 32."""
    why: str = ""
    """Why it stays float, else ""."""


class Check(Result):
    """What a recipe asks for, and what it will take: by its network, data and a few steps."""

    recipe: str
    model: str
    weights: str
    data: str
    classes: int
    channels: int
    image_size: int
    training_images: int
    validation_images: int
    parameters: int
    quantized_weights: int
    weight_bits_mean: float
    layers: list[CheckedLayer]
    macs: int
    """Of all layers and matrix products, for one image."""
    bit_operations: int
    """Likewise; what is in no layer counts as float."""
    float_bit_operations: int
    """Of the network in float."""
    float_bytes: int
    """Of all parameters and statistics in float32."""
    packed_bytes: int
    """Of codes at their width, of a scale and a bias for each channel, and of what stays float."""
    device: str
    batch_size: int
    steps: int
    """Of an epoch."""
    epochs: int
    step_seconds: float
    epoch_seconds: float
    """With its validation."""
    seconds: float
    """Of the whole training."""
    peak_memory_bytes: int | None
    """Of this process while it took those steps; on CUDA of the device. Null where the system does
    not say it."""
    notes: list[str] = Field(default_factory=list)


class WholeRun(Result):
    """What `qtool run` made: the same as summary.json, convert.json and export.json say."""

    run: str
    train: Summary
    convert: Conversion
    export: Export | UnprovenExport


def show_check(result: Check) -> None:
    """Show the layers, and what the recipe will take."""
    columns = ["layer", "weight", "weights", "input", "#macs, M"]
    rows = [[la.layer, la.weight, la.weights, la.input, _millions(la.macs)] for la in result.layers]
    show(table("plan", columns, rows), on_stdout=True)
    left = [(la.layer, la.why) for la in result.layers if la.why]
    if left:
        show(table("left float", ["layer", "why"], left), on_stdout=True)
    images = f"{result.training_images:,} to train on, {result.validation_images:,} to judge by"
    fewer = result.float_bit_operations / result.bit_operations if result.bit_operations else 1.0
    memory = result.peak_memory_bytes
    facts = [
        ("model", f"{result.model}, weights {result.weights}"),
        ("images", images),
        ("classes", result.classes),
        ("shown as", f"{result.channels} x {result.image_size} x {result.image_size}"),
        ("parameters", f"{result.parameters:,}"),
        ("bits per weight", f"{result.weight_bits_mean:.2f}"),
        ("macs, one image", f"{_millions(result.macs)} M"),
        ("bit-operations, one image", f"{_millions(result.bit_operations)} M"),
        ("... of the float network", f"{fewer:.3g} times as many"),
        ("size in float", size(result.float_bytes)),
        ("size packed", f"about {size(result.packed_bytes)}"),
        ("device", result.device),
        ("a step", f"{result.batch_size} images, {1000 * result.step_seconds:.0f} ms"),
        ("an epoch", f"{result.steps:,} steps, about {duration(result.epoch_seconds)}"),
        ("the training", f"{result.epochs:,} epochs, about {duration(result.seconds)}"),
        ("memory", "not known" if memory is None else f"about {memory / 1e9:.1f} GB"),
    ]
    show(table(result.recipe, ["", ""], facts), on_stdout=True)
    for note in result.notes:
        say(f"note: {note}", on_stdout=True)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f}" if count >= 1e9 else f"{count / 1e6:.4g}"


def show_whole_run(result: WholeRun) -> None:
    """Show training, conversion and export in one table."""
    trained, converted, exported = result.train, result.convert, result.export
    rows = [
        ("accuracy, trained", percent(trained.validation_accuracy)),
        ("accuracy, in integers", percent(converted.validation_accuracy_after)),
        *_runtime_rows(exported),
        ("bits per weight", f"{trained.weight_bits_mean:.2f}"),
        ("... on disk", number(exported.bits_per_weight_on_disk)),
        ("float model", size(converted.float_bytes)),
        ("ONNX file", size(exported.file_bytes)),
        ("epochs", trained.epochs),
        ("seconds of training", f"{trained.seconds:.1f}"),
        ("run folder", result.run),
        ("written to", exported.file),
    ]
    verified = isinstance(exported, Export) and not exported.unproven
    title = "trained, converted, exported" + (" and verified" if verified else ", not verified")
    show(table(title, ["", "#"], rows), on_stdout=True)
    notes = [*converted.notes, exported.unproven, *exported.notes]
    for note in dict.fromkeys(filter(None, notes)):
        say(f"note: {note}")
    show_health(trained.health)


def _runtime_rows(exported: Export | UnprovenExport) -> list[tuple[str, str]]:
    """Return what the runtime made of the file, where it was run."""
    if isinstance(exported, UnprovenExport):
        return []
    runtime, times = exported.runtime, exported.latency_ms
    return [
        (f"accuracy in {runtime.name} {runtime.version}", percent(exported.accuracy_runtime)),
        ("top-1 agreement", percent(exported.top1_agreement)),
        ("layers in integer kernels", f"{exported.fused_layers} of {exported.quantized_layers}"),
        ("one image, one thread", f"{times.exported:.2f} ms"),
        ("... in float", f"{times.float_:.2f} ms"),
    ]

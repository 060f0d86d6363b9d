"""The page on a run: how good it is, then how it learned, where it errs, what its layers are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qtool.reports.exports import Export, UnprovenExport
from qtool.reports.layer_figures import LayerFigures
from qtool.reports.pages.confusion import Confusion
from qtool.reports.pages.curves import Curves, curve_table, last_of
from qtool.reports.pages.drawing import ACCENT, QUIET, for_page, named
from qtool.reports.pages.lines import CurveLine, curves
from qtool.reports.pages.page import Picture, Plot, Said, rendered, verdict_of
from qtool.reports.pages.repeat import again
from qtool.reports.pages.tables import Heat, Table, heat_map
from qtool.reports.results import Conversion, EpochLine, Summary
from qtool.reports.words import duration, number, percent, size


@dataclass(frozen=True)
class RunReport:
    """All that the page on a run is made of, as far as its folder has it.

    Attributes:
        model, data: their names in the recipe.
        epochs: that the recipe asks for.
        images: that it was judged by; None where nobody says.
        command: that trains it again.
        notes: what is left out, and why.
    """

    name: str
    model: str
    data: str
    epochs: int
    recipe: str
    summary: Summary | None = None
    history: Sequence[EpochLine] = ()
    images: int | None = None
    confusion: Confusion | None = None
    layers: Sequence[LayerFigures] = ()
    left_float: Mapping[str, str] = field(default_factory=dict)
    conversion: Conversion | None = None
    export: Export | UnprovenExport | None = None
    pictures: Sequence[Picture] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()


def run_page(report: RunReport) -> str:
    """Return the page on a run."""
    summary = report.summary
    bits = "" if summary is None else f" with {summary.weight_bits_mean:.2f} bits per weight"
    given = {
        "title": f"Run {report.name}",
        "kicker": f"qtool run · {report.name}",
        "question": f"How good is {report.model}{bits} on {report.data}?",
        "verdict": verdict_of(" ".join(_verdict(report))),
        "facts": list(_facts(report)),
        "curves": _curves(report.history),
        "confusion": report.confusion,
        "layers": _layers(report.layers) if report.layers else None,
        "left_float": report.left_float,
        "warnings": _warnings(report),
        "pictures": report.pictures,
        "notes": report.notes,
        "again": again(report.command, {report.name: report.recipe}, report.environment),
    }
    return rendered("run.html", given)


def _verdict(report: RunReport) -> Iterator[str]:
    """Yield sentences: how it does, in integers too, and in the runtime."""
    summary, conversion, export = report.summary, report.conversion, report.export
    if summary is None:
        yield "Nothing is trained yet."
        return
    if summary.status == "failed":
        yield f"Training failed after {summary.epochs} of {report.epochs} epochs."
        return
    several = "" if summary.epochs == 1 else "s"
    so_far = "" if summary.status == "finished" else f" after {summary.epochs} epoch{several}"
    if summary.validation_accuracy is not None:
        images = "the" if report.images is None else f"{report.images:,}"
        share = percent(summary.validation_accuracy)
        yield f"It is right on {share} of {images} validation images{so_far}."
    elif summary.validation_loss is not None:
        yield f"Its validation loss is {number(summary.validation_loss)}{so_far}."
    if summary.status == "running":
        yield f"Training is not finished: {summary.epochs} of {report.epochs} epochs."
    if conversion is not None and conversion.validation_accuracy_after is not None:
        yield f"In integers {percent(conversion.validation_accuracy_after)}."
    if isinstance(export, Export):
        took = f"{export.latency_ms.exported:.2f} ms an image"
        faster = export.latency_ms.float_ / export.latency_ms.exported
        beside = f"{faster:.1f} times as fast as float" if faster >= 1 else "slower than float"
        yield f"In {export.runtime.name} {took}, {beside}."


def _facts(report: RunReport) -> Iterator[tuple[str, str]]:
    summary = report.summary
    if summary is None:
        return
    if summary.validation_loss is not None:
        yield "validation loss", number(summary.validation_loss)
    if summary.train_accuracy is not None:
        yield "training accuracy", percent(summary.train_accuracy)
    yield "bits per weight", f"{summary.weight_bits_mean:.2f}"
    yield "parameters", f"{summary.parameters:,}"
    yield "epochs", f"{summary.epochs}"
    yield "training time", duration(summary.seconds)
    if report.conversion is not None:
        made = report.conversion
        yield "integer model", f"{size(made.integer_bytes)} (float {size(made.float_bytes)})"
    if report.export is not None:
        yield "exported file", size(report.export.file_bytes)


def _curves(history: Sequence[EpochLine]) -> Curves | None:
    """Return accuracy and loss of both halves by epoch; None where nothing was trained."""
    if not history:
        return None
    epochs = [line.epoch for line in history]
    held = any(line.holdout_loss is not None for line in history)
    judged = "hold-out" if held else "validation"

    def line(name: str, values: Sequence[float | None], colour: str) -> CurveLine:
        return CurveLine(name, epochs, values, (), (), colour, name)

    def share(value: float | None) -> float | None:
        return None if value is None else 100 * value

    accuracies = [
        line("training", [share(each.train_accuracy) for each in history], QUIET),
        line(judged, [share(_judged_accuracy(each)) for each in history], ACCENT),
    ]
    losses = [
        line("training", [each.train_loss for each in history], QUIET),
        line(judged, [_judged_loss(each) for each in history], ACCENT),
    ]
    plots, shown = [], []
    for lines, what, logarithmic in ((accuracies, "accuracy, %", False), (losses, "loss", True)):
        known = [one for one in lines if any(value is not None for value in one.values)]
        if not known:
            continue
        positive = all(v > 0 for one in known for v in one.values if v is not None)
        drawing = curves(known, what, logarithmic=logarithmic and positive)
        told = ", ".join(f"{one.name} ends at {number(last_of(one))}" for one in known)
        plots.append(Plot(named(for_page(*drawing, f"r{len(plots)}"), f"{what} by epoch: {told}")))
        shown += [CurveLine(f"{one.name} {what}", one.epochs, one.values) for one in known]
    return Curves(plots, curve_table(shown, "by epoch"), "by epoch")


def _judged_accuracy(line: EpochLine) -> float | None:
    held = line.holdout_accuracy
    return line.validation_accuracy if held is None else held


def _judged_loss(line: EpochLine) -> float | None:
    return line.validation_loss if line.holdout_loss is None else line.holdout_loss


def _layers(layers: Sequence[LayerFigures]) -> Table:
    """Return the heat map of layers: bits, levels in use, their error, their rest, their scales."""

    def bits(values: Sequence[int | None]) -> tuple[list[float | None], list[str]]:
        told = ["float" if value is None else str(value) for value in values]
        return [None if value is None else float(value) for value in values], told

    def shares(values: Sequence[float | None]) -> list[str]:
        return ["-" if value is None else f"{100 * value:.1f} %" for value in values]

    used = [
        None if each.levels_used is None or not each.levels else each.levels_used / each.levels
        for each in layers
    ]
    told = [
        "-" if each.levels_used is None else f"{each.levels_used} of {each.levels}"
        for each in layers
    ]
    flips = [1000 * each.flip_ratio[-1] if each.flip_ratio else None for each in layers]
    rest = [
        1000 * each.oscillation_frequency[-1] if each.oscillation_frequency else None
        for each in layers
    ]
    scales = [_scale(each.weight_scale) for each in layers]
    columns = [
        Heat("weight bits", *bits([each.weight_bits for each in layers]), 0, 8),
        Heat("input bits", *bits([each.input_bits for each in layers]), 0, 8),
        Heat("levels in use", used, told, 0, 1),
        Heat("at the ends", [each.saturated for each in layers],
             shares([each.saturated for each in layers]), 0),
        Heat("SQNR, dB", [each.sqnr for each in layers],
             [number(each.sqnr, 3) for each in layers]),
        Heat("flips, ‰ a step", flips, [number(value, 2) for value in flips], 0),
        Heat("oscillation, ‰", rest, [number(value, 2) for value in rest], 0),
        Heat("weight scale", [one and one[0] for one in scales],
             [one[1] if one else "-" for one in scales]),
        Heat("input scale", [_middle(each.input_scale) for each in layers],
             [_told(each.input_scale) for each in layers]),
    ]  # fmt: skip
    return heat_map("layer", [each.layer or "the model" for each in layers], columns)


def _scale(ends: tuple[float, float] | None) -> tuple[float | None, str] | None:
    return None if ends is None else (_middle(ends), _told(ends))


def _middle(ends: tuple[float, float] | None) -> float | None:
    """Return the geometric mean of two scales."""
    return None if ends is None else (max(0.0, ends[0]) * max(0.0, ends[1])) ** 0.5


def _told(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "-"
    low, high = (number(end, 3) for end in ends)
    return low if low == high else f"{low} to {high}"


def _warnings(report: RunReport) -> list[Said]:
    """Return what should be looked at, each finding once."""
    return list(dict.fromkeys(_found(report)))


def _found(report: RunReport) -> Iterator[Said]:
    if report.summary is not None:
        if report.summary.error:
            yield Said("", report.summary.error)
        for found in report.summary.health:
            yield Said(found.layer, found.says)
    if report.export is not None:
        for found in report.export.health:
            yield Said(found.layer or "exported file", found.says)
        if isinstance(report.export, UnprovenExport):
            yield Said("exported file", f"not run, so not proven: {report.export.unproven}")

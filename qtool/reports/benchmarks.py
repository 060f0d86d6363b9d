"""What `qtool bench` measures: times per thread count and batch, and per operator."""

from collections.abc import Iterator

from pydantic import Field

from qtool.console import say, show, table
from qtool.reports.result import Result
from qtool.reports.words import size


class Spread(Result):
    """Milliseconds for one batch over the rounds of a measurement."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""


class Timing(Result):
    """One file on a number of threads, for a number of images at once; all are run in turn."""

    threads: int
    batch: int
    exported: Spread
    float_: Spread | None = Field(alias="float")
    """Of the same network with nothing rounded; null where the file does not tell it."""
    static: Spread | None
    """Of the float network as the runtime's own quantization writes it; null without it."""
    images_per_second: float
    """Of the exported file, by the median."""


class OperatorTime(Result):
    """What one operator of the runtime's graph takes."""

    operator: str
    name: str
    """The layer or the call that it comes from, as the runtime names it."""
    ms: float
    """For one batch, on average."""
    share: float
    """Of the time of all operators, 0..1."""


class BenchedModel(Result):
    """One model."""

    model: str
    file_bytes: int
    timings: list[Timing]
    notes: list[str] = Field(default_factory=list)
    """Why something was not measured."""
    operators: list[OperatorTime] = Field(default_factory=list)
    """Slowest first; absent unless asked for."""


class Benchmark(Result):
    """What `qtool bench --json` prints."""

    processor: str
    cores: int
    runtime: str
    version: str
    rounds: int
    models: list[BenchedModel]


MOST_OPERATORS = 15


def show_benchmark(result: Benchmark) -> None:
    """Show the times of every model, and of its operators."""
    on = f"{result.runtime} {result.version}, {result.processor}, {result.cores} cores"
    say(f"{on}; medians of {result.rounds} rounds in turn", on_stdout=True)
    columns = ["what", "#threads", "#batch", "#ms", "#quartiles", "#x file", "#images/s"]
    for model in result.models:
        rows = [row for timing in model.timings for row in _rows(timing)]
        show(table(f"{model.model}, {size(model.file_bytes)}", columns, rows), on_stdout=True)
        for note in model.notes:
            say(note)
        if model.operators:
            _show_operators(model)


def _rows(timing: Timing) -> Iterator[tuple[object, ...]]:
    spreads = (("file", timing.exported), ("float", timing.float_), ("own int8", timing.static))
    for what, spread in spreads:
        if spread is not None:
            yield (
                what,
                timing.threads or "all",
                timing.batch,
                f"{spread.median:.2f}",
                f"{spread.low:.2f} to {spread.high:.2f}",
                f"{spread.median / timing.exported.median:.2f}",
                f"{1000 * timing.batch / spread.median:.0f}",
            )


def _show_operators(model: BenchedModel) -> None:
    shown, left = model.operators[:MOST_OPERATORS], model.operators[MOST_OPERATORS:]
    rows = [(op.name, op.operator, f"{op.ms:.3f}", f"{100 * op.share:.1f} %") for op in shown]
    if left:
        ms, share = sum(op.ms for op in left), 100 * sum(op.share for op in left)
        rows.append((f"{len(left)} others", "", f"{ms:.3f}", f"{share:.1f} %"))
    title = "its operators, for one batch on one thread"
    show(table(title, ["name", "operator", "#ms", "#share"], rows), on_stdout=True)

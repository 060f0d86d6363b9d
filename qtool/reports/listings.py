"""What `qtool list` prints: choices by their names, and runs; quick to load."""

from json import dumps
from typing import Literal

from pydantic import Field

from qtool.reports.result import Result
from qtool.reports.words import percent


class ListedParameter(Result):
    """What may be set of a choice; `schema`, JSON Schema of its values, comes with it."""

    name: str
    default: object = None
    """Absent where it must be given."""
    what: str = ""

    @property
    def shown(self) -> str:
        """Return it with its default, as a recipe would have it."""
        if "default" not in self.model_fields_set:
            return f"{self.name} (required)"
        plain = self.default is None or isinstance(self.default, bool)
        return f"{self.name}: {dumps(self.default) if plain else self.default}"


class ListedChoice(Result):
    """One name that a recipe may choose."""

    name: str
    summary: str
    parameters: list[ListedParameter] = Field(default_factory=list)
    weights: list[str] = Field(default_factory=list)
    """Of a published model: names of the weights that there are."""
    size: int | None = None
    """Of a published model: how many weights it has, for 1000 classes."""
    accuracy: float | None = None
    """Of a published model: top-1 on ImageNet by its DEFAULT weights, 0..1."""


class Listing(Result):
    """The names of a family."""

    kind: str
    choices: list[ListedChoice]


class ListedRun(Result):
    """One run folder."""

    run: str
    status: Literal["running", "stopped", "finished", "failed", "damaged"]
    """stopped: not finished, and no process writes there; damaged: summary.json is unreadable."""
    validation_accuracy: float | None = None
    weight_bits_mean: float | None = None
    epochs: int | None = None
    date: str
    """When its summary.json was last written, YYYY-MM-DDTHH:MM:SS+HH:MM."""


class RunListing(Result):
    """The runs in a folder and in those below it."""

    kind: Literal["runs"]
    folder: str
    runs: list[ListedRun]


def show_listing(result: Listing | RunListing) -> None:
    """Show names and what they are, or runs and how they did."""
    from qtool.console import say, show, table

    if isinstance(result, RunListing):
        columns = ["run", "status", "#accuracy", "#bits", "#epochs", "date"]
        made = table(f"runs in {result.folder}", columns, map(_run_row, result.runs))
        show(made, on_stdout=True)
        return
    published = any(choice.size for choice in result.choices)
    rows = []
    for choice in result.choices:
        figures = [_millions(choice.size), percent(choice.accuracy)] if published else []
        what = "\n".join([choice.summary, *(each.shown for each in choice.parameters)])
        rows.append([choice.name, *figures, what])
    columns = ["name", *(["#weights", "#ImageNet top-1"] if published else []), "what"]
    show(table(result.kind, columns, rows), on_stdout=True)
    if published:
        say(
            "Weights for 1000 classes; top-1 of the published weights DEFAULT, in float.",
            on_stdout=True,
        )


def _millions(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} M"


def _run_row(run: ListedRun) -> list[str]:
    bits, epochs = run.weight_bits_mean, run.epochs
    return [
        run.run,
        run.status,
        percent(run.validation_accuracy),
        "-" if bits is None else f"{bits:.2f}",
        "-" if epochs is None else str(epochs),
        run.date[:16].replace("T", " "),
    ]

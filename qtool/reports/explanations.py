"""What may explain a difference between arms: how each of them trained, epoch by epoch."""

from collections.abc import Sequence
from statistics import fmean

from qtool.console import show, table
from qtool.reports.result import Result
from qtool.reports.words import number, percent


class Explained(Result):
    """How one arm's trials trained."""

    arm: str
    epochs: list[int]
    measures: dict[str, list[float | None]]
    """Key of metrics.jsonl -> by epoch, mean over the trials and, where it is of layers, over them;
    null where no trial has it."""


def show_explained(explained: Sequence[Explained]) -> None:
    """Show how the arms trained, where that was looked at: the cosine's mean, else the end."""
    asked = {"coarse_gradient_cosine", "saturated_activations"}
    if not any(asked & set(each.measures) for each in explained):
        return
    rows = []
    for each in explained:
        cosines = [c for c in each.measures.get("coarse_gradient_cosine", []) if c is not None]
        last = {key: values[-1] for key, values in each.measures.items()}
        rows.append(
            (
                each.arm,
                number(fmean(cosines), 2) if cosines else "-",
                percent(last.get("saturated_activations")),
                percent(last.get("saturated_weights")),
                number(last.get("levels_in_use"), 3),
                number(last.get("sqnr"), 3),
                percent(last.get("flip_ratio")),
            )
        )
    columns = [
        "arm",
        "#cosine to the loss's gradient",
        "#saturated activations",
        "#weights",
        "#levels in use",
        "#SQNR, dB",
        "#codes that flip in a step",
    ]
    show(table("how they trained", columns, rows), on_stdout=True)

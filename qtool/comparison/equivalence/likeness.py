"""What a finished trial did, and how alike two of them are: every figure of an equivalence."""

from dataclasses import dataclass, field

from qtool.comparison.equivalence import agreement
from qtool.comparison.equivalence.asked import MAPPED
from qtool.reports.results import EpochLine
from qtool.runs.kept.changes import Record, read_record
from qtool.runs.kept.folder import RunFolder
from qtool.straight_through.recipe import Equivalent

METRIC_NAMES = (
    "weight_alignment_error",
    "quantized_weight_agreement",
    "change_point_agreement",
    "inference_agreement",
    "change_point_agreement_compressed",
    "change_point_error",
    "incorrect_inference_agreement",
    "loss_correlation",
    "accuracy_correlation",
)
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Traced:
    """What a finished trial did: its weights and their flips, and its lines of metrics."""

    record: Record
    history: list[EpochLine] = field(default_factory=list[EpochLine])


def read_traced(folder: RunFolder) -> Traced:
    """Return what a finished trial did.

    Raises:
        InputError: If a record is missing or damaged, or a line of metrics is.
    """
    history = folder.history()
    return Traced(read_record(folder, len(history)), history)


@dataclass(frozen=True)
class Likeness:
    """How alike an arm's trial and custom's are.

    Attributes:
        alignment_errors, code_agreements: at the beginning and after each epoch.
        inference_agreements: after each epoch.
        final: METRIC_NAMES -> at the end.
    """

    alignment_errors: list[float | None]
    code_agreements: list[float]
    inference_agreements: list[float]
    final: Figures


def measure(a: Traced, b: Traced, arm: str, theory: Equivalent) -> Likeness:
    """Return how alike an arm's trial `b` and custom's `a` are, at the end and epoch by epoch."""
    layers, maps = a.record.layers, theory.maps
    mapped = {n: maps[n].map for n in layers} if arm == MAPPED and not theory.adaptive else {}
    largest = {name: maps[name].largest_level(one.scale) for name, one in layers.items()}
    errors = agreement.alignment_errors(a.record, b.record, mapped, largest)
    codes = agreement.code_agreements(a.record, b.record)
    answers = agreement.inference_agreements(a.record, b.record)
    held = all(line.holdout_loss is not None for line in (*a.history, *b.history))
    judge = "holdout" if held else "validation"
    losses, accuracies = (
        [[getattr(line, f"{judge}_{figure}") for line in traced.history] for traced in (a, b)]
        for figure in ("loss", "accuracy")
    )
    final: Figures = {
        "weight_alignment_error": errors[-1],
        "quantized_weight_agreement": codes[-1],
        "inference_agreement": answers[-1],
        **agreement.flip_agreement(a.record, b.record),
        "incorrect_inference_agreement": agreement.incorrect_agreement(a.record, b.record),
        "loss_correlation": agreement.correlation(*losses),
        "accuracy_correlation": agreement.correlation(*accuracies),
    }
    return Likeness(errors, codes, answers, final)

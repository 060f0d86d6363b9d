"""What a comparison's page says of how it was judged, and of what may explain a difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qtool.reports.comparisons import Comparison, Equivalence
from qtool.reports.explanations import Explained
from qtool.reports.fair_words import fair_sentences
from qtool.reports.pages.curves import NOBODY, Curves, each_beside
from qtool.reports.pages.lines import CurveLine
from qtool.reports.pages.tables import Heat, Table, heat_map
from qtool.reports.words import number

MEASURES = {  # key -> its name, and what its values are multiplied by
    "coarse_gradient_cosine": ("cosine to the loss's gradient", 1.0),
    "saturated_activations": ("saturated activations, %", 100.0),
    "saturated_weights": ("saturated weights, %", 100.0),
    "levels_in_use": ("levels in use", 1.0),
    "sqnr": ("SQNR, dB", 1.0),
    "flip_ratio": ("flips, ‰ a step", 1000.0),
    "oscillation_frequency": ("oscillation, ‰", 1000.0),
    "weight_scale": ("weight scale", 1.0),
    "input_scale": ("input scale", 1.0),
}


MOST_FIGURES = 72  # of a page; of the measures after those there are no curves


@dataclass(frozen=True)
class Explanation:
    """How arms trained: the end of it as a heat map, and measures over epochs as curves."""

    ends: Table
    curves: Sequence[Curves]


def explanation(
    explained: Sequence[Explained], against: Mapping[str, str] = NOBODY
) -> Explanation | None:
    """Return how arms trained; None where nobody looked.

    Args:
        explained: of the arms, in their order.
        against: arm -> the one that it is held against, where that is not the first.
    """
    return Explanation(_ends(explained), _curves(explained, against)) if explained else None


def _curves(explained: Sequence[Explained], against: Mapping[str, str]) -> list[Curves]:
    """Return each measure of several epochs, arm by arm."""
    made = list[Curves]()
    figures = 0
    for place, (key, (what, unit)) in enumerate(MEASURES.items()):
        lines = [
            CurveLine(each.arm, each.epochs, [None if v is None else unit * v for v in values])
            for each in explained
            if (values := each.measures.get(key)) and any(v is not None for v in values)
        ]
        figures += max(1, len(lines) - 1)
        if max((len(line.epochs) for line in lines), default=0) > 1 and figures <= MOST_FIGURES:
            made.append(each_beside(lines, what, f"x{place}-", what, against))
    return made


def _ends(explained: Sequence[Explained]) -> Table:
    """Return how arms trained as a heat map.

    The cosine is the mean over epochs, for one epoch's is noise; all else is of the last epoch.
    """
    heats = []
    for key, (name, unit) in MEASURES.items():
        values = [_figure(key, each.measures.get(key, []), unit) for each in explained]
        heats.append(Heat(name, values, [number(value, 3) for value in values]))
    return heat_map("arm", [each.arm for each in explained], heats)


def _figure(key: str, by_epoch: Sequence[float | None], unit: float) -> float | None:
    known = [value for value in by_epoch if value is not None]
    if key == "coarse_gradient_cosine":
        return unit * fmean(known) if known else None
    return unit * known[-1] if known else None


def of_looks(result: Comparison | Equivalence) -> Iterator[str]:
    """Yield when a comparison was judged, where that was several times."""
    if len(result.looks) > 1:
        told = "; ".join(
            f"after {len(look.seeds)} seed{'' if len(look.seeds) == 1 else 's'} at {look.alpha:.3g}"
            f"{'' if look.planned else ', unplanned'}"
            for look in result.looks
        )
        yield f"The comparison was judged {len(result.looks)} times: {told}."


def how_judged(result: Comparison) -> Iterator[str]:
    """Yield sentences on fairness, looks, and what was known of the trials."""
    yield from fair_sentences(result)
    yield from of_looks(result)
    if result.without_answers:
        names = "; ".join(result.without_answers)
        yield f"Judged by accuracies alone, for no answers to images are kept: {names}."
    if result.threads is not None:
        count = "one thread" if result.threads == 1 else f"{result.threads} threads"
        yield f"Every trial was trained with {count}."

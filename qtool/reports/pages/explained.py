"""What a comparison's page says of how it was judged, and of what may explain a difference."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from qtool.reports.comparisons import Comparison
from qtool.reports.explanations import Explained
from qtool.reports.fair_words import fair_sentences
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


def explanation(explained: Sequence[Explained]) -> Table | None:
    """Return how arms trained as a heat map; None where nobody looked.

    The cosine is the mean over epochs, for one epoch's is noise; all else is of the last epoch.
    """
    if not explained:
        return None
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


def how_judged(result: Comparison) -> Iterator[str]:
    """Yield sentences on fairness, looks, and what was known of the trials."""
    yield from fair_sentences(result)
    if len(result.looks) > 1:
        told = "; ".join(
            f"after {len(look.seeds)} seeds at {look.alpha:.3g}"
            f"{'' if look.planned else ', unplanned'}"
            for look in result.looks
        )
        yield f"The comparison was judged {len(result.looks)} times: {told}."
    if result.without_answers:
        names = "; ".join(result.without_answers)
        yield f"Judged by accuracies alone, for no answers to images are kept: {names}."
    if result.threads is not None:
        count = "one thread" if result.threads == 1 else f"{result.threads} threads"
        yield f"Every trial was trained with {count}."

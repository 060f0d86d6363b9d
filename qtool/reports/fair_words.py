"""What was done so that the arms of a comparison have an equal chance, in words for people."""

from collections.abc import Iterator

from pydantic import JsonValue

from qtool.reports.comparisons import Comparison
from qtool.reports.words import number

ALIKE = 0.005  # shares of a rate that are shown alike


def fair_sentences(result: Comparison) -> Iterator[str]:
    """Yield what people should know of the arms' learning rates and of how they were tuned."""
    shares = {a.name: a.integrated_rate for a in result.arms if a.integrated_rate is not None}
    if result.match:
        yield f"Learning rates of weights are divided by {result.match}, layer by layer."
    if any(abs(share - 1) > ALIKE for share in shares.values()):
        first, *others = shares
        told = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in others)
        yield f"Learning rate that reaches the weights, as a share of {first}'s: {told}."
    for arm, values in (result.tuned or {}).items():
        edges = (result.at_edge or {}).get(arm, [])
        if not values:
            yield f"{arm} was tuned in vain: none of its candidates finished."
            continue
        told = ", ".join(
            f"{key} = {_written(value)}{' (edge of the grid)' if key in edges else ''}"
            for key, value in values.items()
        )
        yield f"{arm} was tuned: {told}."


def _written(value: JsonValue) -> str:
    return number(value) if isinstance(value, float) else str(value)

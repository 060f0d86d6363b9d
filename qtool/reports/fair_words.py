"""What was done so that the arms of a comparison have an equal chance, in words for people."""

from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from qtool.reports.comparisons import Comparison, Equivalence
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


def accuracy_sentences(result: Equivalence) -> Iterator[str]:
    """Yield which arms are as accurate as custom, more so, or less, where several seeds tell.

    The verdict is on weights: equal accuracies alone make no equivalence.
    """
    told = [
        (each.arm, each.low, each.high)
        for each in result.differences
        if each.low is not None and each.high is not None and each.low < each.high
    ]
    equal = [(each.arm, each.equal_low, each.equal_high) for each in result.differences
             if each.equal]  # fmt: skip
    if equal and result.margin is not None:
        yield f"As accurate as custom to within {100 * result.margin:g} points: {_listed(equal)}."
    if more := [each for each in told if each[1] > 0]:
        yield f"More accurate than custom: {_listed(more)}."
    if less := [each for each in told if each[2] < 0]:
        yield f"Less accurate than custom: {_listed(less)}."


def _listed(arms: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Return names of arms, each with the interval of its difference in points."""
    return ", ".join(
        f"{name} ({100 * (low or 0):+.2f} to {100 * (high or 0):+.2f})" for name, low, high in arms
    )


def _written(value: JsonValue) -> str:
    return number(value) if isinstance(value, float) else str(value)

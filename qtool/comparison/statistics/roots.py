"""Where a rising function crosses zero."""

from collections.abc import Callable

HALVINGS = 50  # to one part in 10^15 of where it begins


def root_of_rising(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that rises from below zero at `low` to above it at `high` is zero."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2

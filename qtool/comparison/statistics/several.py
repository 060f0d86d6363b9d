"""Several comparisons at once: what chance alone seldom shows in any of them."""

from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05  # how often chance alone may show something


@dataclass(frozen=True)
class Judged:
    """One of several tests.

    Attributes:
        shown: it shows something.
        alpha: the level that it was held against; its interval has the confidence 1 - alpha, and
            holds 0 just where nothing is shown.
    """

    shown: bool
    alpha: float


def holm(p_values: Sequence[float | None], alpha: float = ALPHA) -> list[Judged]:
    """Judge several tests, so that chance alone shows anything in `alpha` of all cases at most.

    The k-th smallest of n p-values, k from 0, must be at most alpha / (n - k), and all smaller ones
    too; those that are not are all held against the level at which the first of them failed. With
    one test that is the test itself. None, which is no test, shows nothing.

    Reference: Holm, 1979, A simple sequentially rejective multiple test procedure.
    """
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    levels = {index: alpha / (len(tests) - k) for k, (_, index) in enumerate(tests)}
    failed = next((k for k, (p, index) in enumerate(tests) if p > levels[index]), len(tests))
    shown = {index for _, index in tests[:failed]}
    last = levels[tests[failed][1]] if failed < len(tests) else alpha
    return [
        Judged(index in shown, levels[index] if index in shown else last)
        for index in range(len(p_values))
    ]


def beyond_chance(p_values: Sequence[float | None], alpha: float = ALPHA) -> list[bool]:
    """Tell which of several tests show something; see `holm`."""
    return [judged.shown for judged in holm(p_values, alpha)]

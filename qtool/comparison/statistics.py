"""Paired differences between arms, with intervals: what a comparison may honestly say."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from qtool.reports.comparisons import Difference

CONFIDENCE = 0.95
NOTHING = 1e-9  # smaller than one image in any data set


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation; None where there are too few values."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None


def paired_difference(
    arm: str, against: str, values: Sequence[float | None], base: Sequence[float | None]
) -> Difference:
    """Compare two arms seed by seed, by Student's t on the differences.

    mean +- t(0.975, n - 1) * std / sqrt(n)

    Args:
        arm: name of the arm.
        against: name of the arm it is compared with.
        values: one for each seed, None where the trial failed or has no accuracy.
        base: the other arm's, of the same seeds in the same order.
    """
    pairs = zip(values, base, strict=True)
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    mean, spread = mean_and_std(gaps)
    low = high = p_value = None
    if mean is not None and spread is not None:
        from scipy.stats import t as student_t  # takes most of a second, at every command's start

        error, freedom = spread / len(gaps) ** 0.5, len(gaps) - 1
        half = float(student_t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
        low, high = mean - half, mean + half
        if spread > NOTHING:
            p_value = 2 * float(student_t.sf(abs(mean) / error, freedom))
    return Difference(
        arm=arm, against=against, mean=mean, low=low, high=high, pairs=len(gaps), p_value=p_value
    )


def beyond_chance(p_values: Sequence[float | None]) -> list[bool]:
    """Tell which of several tests show something, so that chance alone seldom shows anything.

    The k-th smallest of n p-values, k from 0, must be at most (1 - CONFIDENCE) / (n - k), and all
    smaller ones too. With one test that is the test itself. None, which is no test, shows nothing.

    Reference: Holm, 1979, A simple sequentially rejective multiple test procedure.
    """
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    shown = [False] * len(p_values)
    for k, (p, index) in enumerate(tests):
        if p > (1 - CONFIDENCE) / (len(tests) - k):
            break
        shown[index] = True
    return shown


def verdict(differences: Sequence[Difference], failed: Mapping[str, int] | None = None) -> str:
    """Say what the differences show, a line for each failed arm and each difference.

    Args:
        differences: from the first arm. Several are corrected for being several.
        failed: arm -> on how many seeds it failed, where it did.
    """
    if not differences:
        return "There is only one arm, so nothing is compared."
    lost = failed or {}
    shown = beyond_chance([item.p_value for item in differences])
    tests = sum(item.p_value is not None for item in differences)
    failures = [f"{arm} failed on {_count(count)}." for arm, count in lost.items() if count]
    sentences = [
        _sentence(item, tests if item.p_value is not None and not sure else 1, lost)
        for item, sure in zip(differences, shown, strict=True)
    ]
    return "\n".join([*failures, *sentences])


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _sentence(item: Difference, tests: int, failed: Mapping[str, int]) -> str:
    """Say what a difference shows; among `tests` it does not hold, unless it is the only one."""
    names = f"{item.arm} against {item.against}"
    if item.mean is None:
        return f"{names}: no seed has an accuracy in both."
    if item.low is None or item.high is None:
        points = f"{100 * item.mean:+.2f} points on one seed"
        return f"{names}: {points}, too few seeds to say anything."
    if item.high - item.low < NOTHING:
        if abs(item.mean) < NOTHING:
            return f"{names}: equal on every seed."
        points = f"{100 * item.mean:+.2f} points on each of {item.pairs} seeds"
        return f"{names}: {points}, which says nothing of how far seeds differ."
    interval = f"{100 * item.low:+.2f} to {100 * item.high:+.2f} points"
    if item.low <= 0 <= item.high:
        return f"{names}: no difference detected with {item.pairs} seeds ({interval})."
    if tests > 1:
        return f"{names}: {interval} taken alone, which among {tests} comparisons may be chance."
    better = item.low > 0
    best, other = (item.arm, item.against) if better else (item.against, item.arm)
    if failed.get(best, 0) > failed.get(other, 0):
        pairs = f"{_count(item.pairs)} that both finished"
        return f"{names}: {interval} on the {pairs}, but {best} failed more often."
    return f"{item.arm} is {'better' if better else 'worse'} than {item.against}: {interval}."

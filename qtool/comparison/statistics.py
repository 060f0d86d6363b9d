"""Paired differences between arms, with intervals: what a comparison may honestly say."""

from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

CONFIDENCE = 0.95
NOTHING = 1e-9  # smaller than one image in any data set


@dataclass(frozen=True)
class Difference:
    """Mean paired difference of an arm from the first one, with its confidence interval.

    Attributes:
        mean: of arm - against over the seeds that both finished; None where there is none.
        low, high: the interval; None where fewer than two pairs leave it open.
        pairs: how many seeds both finished.
        p_value: of the t-test that there is no difference; None where the pairs leave it open.
    """

    arm: str
    against: str
    mean: float | None
    low: float | None
    high: float | None
    pairs: int
    p_value: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def mean_and_std(values: list[float]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation; None where there are too few values."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None


def paired_difference(
    arm: str, against: str, values: list[float | None], base: list[float | None]
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
    if mean is None or spread is None:
        return Difference(arm, against, mean, None, None, len(gaps))
    error, freedom = spread / len(gaps) ** 0.5, len(gaps) - 1
    half = float(student_t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    p_value = 2 * float(student_t.sf(abs(mean) / error, freedom)) if spread > NOTHING else None
    return Difference(arm, against, mean, mean - half, mean + half, len(gaps), p_value)


def beyond_chance(p_values: list[float | None]) -> list[bool]:
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


def verdict(differences: list[Difference], failed: dict[str, int] | None = None) -> str:
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


def _sentence(item: Difference, tests: int, failed: dict[str, int]) -> str:
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

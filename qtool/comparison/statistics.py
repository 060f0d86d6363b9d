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
    """

    arm: str
    against: str
    mean: float | None
    low: float | None
    high: float | None
    pairs: int

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
    half = student_t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1) * spread / len(gaps) ** 0.5
    return Difference(arm, against, mean, mean - float(half), mean + float(half), len(gaps))


def verdict(differences: list[Difference]) -> str:
    """Say in a sentence what the differences show."""
    if not differences:
        return "There is only one arm, so nothing is compared."
    return " ".join(_sentence(item) for item in differences)


def _sentence(item: Difference) -> str:
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
    if item.low > 0:
        return f"{item.arm} is better than {item.against}: {interval}."
    if item.high < 0:
        return f"{item.arm} is worse than {item.against}: {interval}."
    return f"{names}: no difference detected with {item.pairs} seeds ({interval})."

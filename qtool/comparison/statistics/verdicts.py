"""The words: what the differences of arms show, a sentence each."""

from collections.abc import Mapping, Sequence

from qtool.comparison.statistics.differences import NOTHING
from qtool.comparison.statistics.power import MOST_SEEDS
from qtool.comparison.statistics.several import holm
from qtool.reports.comparisons import Difference


def verdict(differences: Sequence[Difference], failed: Mapping[str, int] | None = None) -> str:
    """Say what the differences show, a line for each failed arm and each difference.

    Args:
        differences: from the first arm, as `differences_from_first` returns them.
        failed: arm -> on how many seeds it failed, where it did.
    """
    if not differences:
        return "There is only one arm, so nothing is compared."
    lost = failed or {}
    tests = sum(item.p_value is not None for item in differences)
    networks = holm([item.mcnemar_p for item in differences])
    failures = [f"{arm} failed on {_count(count)}." for arm, count in lost.items() if count]
    said = [
        _sentence(item, tests, lost, differ=network.shown)
        for item, network in zip(differences, networks, strict=True)
    ]
    return "\n".join([*failures, *said])


def sentences_on_networks(differences: Sequence[Difference]) -> list[str]:
    """Say which of some networks differ from the first, a sentence each, where images tell."""
    return [
        f"{item.arm} against {item.against}: {between_networks(item, differ=network.shown)}."
        for item, network in zip(
            differences, holm([each.mcnemar_p for each in differences]), strict=True
        )
        if item.mcnemar_p is not None
    ]


def is_decided(item: Difference) -> bool:
    """Tell whether a difference is shown, or shown to be none."""
    if item.low is None or item.high is None:
        return False
    return bool(item.equal) or not item.low <= 0 <= item.high


def points(value: float, decimals: int = 1, *, sign: bool = False) -> str:
    """Return a share as points, without a minus before nothing."""
    text = f"{100 * value:{'+' if sign else ''}.{decimals}f}"
    return text if float(text) else text.lstrip("+-")


def _decimals(*values: float | None) -> int:
    """Return how many decimals show what is not nothing as something, 1 to 3."""
    found = [abs(100 * value) for value in values if value is not None and abs(value) > NOTHING]
    return next((d for d in (1, 2) if not found or min(found) >= 0.5 * 10.0**-d), 3)


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _sentence(item: Difference, tests: int, failed: Mapping[str, int], *, differ: bool) -> str:
    """Say what a difference shows, among so many tests; of one seed, whether networks differ."""
    names = f"{item.arm} against {item.against}"
    if item.mean is None:
        return f"{names}: no seed has an accuracy in both."
    if item.low is None or item.high is None:
        return f"{names}: {_of_one_seed(item, item.mean, differ=differ)}."
    if item.high - item.low < NOTHING:
        if abs(item.mean) < NOTHING:
            return f"{names}: equal on every seed."
        gap = f"{points(item.mean, 2, sign=True)} points on each of {item.pairs} seeds"
        return f"{names}: {gap}, which says nothing of how far seeds differ."
    if item.low <= 0 <= item.high:
        return f"{names}: {_equal(item) or _undecided(item)}."
    better = item.low > 0
    best, other = (item.arm, item.against) if better else (item.against, item.arm)
    if failed.get(best, 0) > failed.get(other, 0):
        gap = _interval(item.low, item.high, sign=True)
        pairs = f"{_count(item.pairs)} that both finished"
        return f"{names}: {gap} points on the {pairs}, but {best} failed more often."
    return f"{item.arm} is {_winner(item, tests, better=better)}."


def _winner(item: Difference, tests: int, *, better: bool) -> str:
    """Say by how much an arm is better or worse, on these images and on new ones."""
    sign = 1 if better else -1
    ends = [item.low or 0.0, item.high or 0.0]
    low, high = sorted(sign * end for end in ends)
    mean = sign * (item.mean or 0.0)
    among = f", Holm over {tests}" if tests > 1 else ""
    by = "" if item.by_images or item.images is None else ", by seeds alone"
    size = points(mean, _decimals(low, high))
    said = (
        f"{'better' if better else 'worse'} than {item.against} by {size} points "
        f"({_interval(low, high)}; {_count(item.pairs)}{among}{by})"
    )
    if item.new_low is None or item.new_high is None:
        return said + _also_equal(item)
    said += f" on these {item.images:,} images{_also_equal(item)}"
    new_low, new_high = sorted((sign * item.new_low, sign * item.new_high))
    doubt = "" if new_low > 0 else ", not certain"
    return f"{said}; on new images {size} ({_interval(new_low, new_high)}){doubt}"


def _interval(low: float, high: float, *, sign: bool = False) -> str:
    decimals = _decimals(low, high)
    return f"{points(low, decimals, sign=sign)} to {points(high, decimals, sign=sign)}"


def _equal(item: Difference) -> str:
    """Say that two arms are equal, "" where that is not shown."""
    if not item.equal or item.equal_low is None or item.equal_high is None:
        return ""
    within = _interval(item.equal_low, item.equal_high, sign=True)
    return f"equal to within {100 * (item.margin or 0):g} points (90 %: {within})"


def _also_equal(item: Difference) -> str:
    equal = _equal(item)
    return f", and {equal}" if equal else ""


def _undecided(item: Difference) -> str:
    """Say what would have been found."""
    said = "no difference detected"
    if item.detectable is None or item.margin is None:
        return said
    found = points(item.detectable, _decimals(item.detectable))
    needed = item.seeds_needed
    seeds = f"more than {MOST_SEEDS:,} seeds" if needed is None else _count(needed)
    margin = f"{100 * item.margin:g} points"
    if item.detectable <= item.margin:
        return f"{said}; {found} points would have been found 4 times in 5"
    return f"{said}; {found} points would have been found 4 times in 5, {margin} take {seeds}"


def _of_one_seed(item: Difference, mean: float, *, differ: bool) -> str:
    """Say what one seed shows: of two networks, never of two methods."""
    gap = f"{points(mean, 2, sign=True)} points on one seed"
    if item.mcnemar_p is None:
        return f"{gap}, too few seeds to say anything"
    return (
        f"{gap}; {between_networks(item, differ=differ)}, and one seed says nothing of the methods"
    )


def between_networks(item: Difference, *, differ: bool) -> str:
    """Say what McNemar's test shows of two networks; `differ`: also among all that are tested."""
    if not item.arm_only and not item.against_only:
        return f"the two networks are right on the same of {item.images:,} images"
    counts = (
        f"of {item.images:,} images {item.arm_only} only {item.arm} gets right, "
        f"{item.against_only} only {item.against}"
    )
    shown = "these two networks differ" if differ else "which may be chance"
    return f"{counts}, {shown} (exact McNemar p = {item.mcnemar_p or 0.0:.2g})"

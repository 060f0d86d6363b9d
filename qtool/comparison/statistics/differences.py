"""The difference of each arm from the first, with everything that may be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from qtool.comparison.statistics.equality import MARGIN, equality
from qtool.comparison.statistics.gaps import (
    Floats,
    Gaps,
    Right,
    gaps_between,
    gaps_of_accuracies,
)
from qtool.comparison.statistics.pairs import discordant
from qtool.comparison.statistics.power import detectable_effect, seeds_needed
from qtool.comparison.statistics.several import ALPHA, Judged, holm
from qtool.comparison.statistics.spread import Spread, spread_of, spread_on_new_images
from qtool.reports.comparisons import Difference

NOTHING = 1e-9  # smaller than one image in any data set


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation; None where there are too few values."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Reached:
    """What an arm reached, seed by seed.

    Attributes:
        name: of the arm.
        accuracies: one for each seed, None where the trial failed or has no accuracy.
        right: which images each seed's network gets right, bool [images], None where that is not
            known. Where all are known they are of the same images in the same order.
    """

    name: str
    accuracies: Sequence[float | None]
    right: Sequence[Right | None]

    @classmethod
    def only(cls, name: str, accuracies: Sequence[float | None]) -> "Reached":
        """Return an arm of which no more than its accuracies is known."""
        return cls(name, accuracies, [None] * len(accuracies))


@dataclass(frozen=True)
class Tested:
    """One arm held against another, before it is known among how many."""

    arm: Reached
    against: Reached
    seeds: list[int]
    gaps: Gaps | None
    spread: Spread | None
    p_value: float | None


def differences_from_first(
    arms: Sequence[Reached], *, margin: float = MARGIN, alpha: float = ALPHA
) -> list[Difference]:
    """Compare every arm with the first, seed by seed.

        m +- t(1 - alpha_k / 2, freedom) s~ / sqrt(n),  alpha_k by Holm's procedure

    Args:
        arms: of the same seeds in the same order.
        margin: what counts as equal.
        alpha: how often chance alone may name a winner.
    """
    first, *others = arms
    tested = [_tested(arm, first) for arm in others]
    judged = holm([each.p_value for each in tested], alpha)
    return [
        _difference(each, level, margin, alpha) for each, level in zip(tested, judged, strict=True)
    ]


def p_values_of(gaps: Gaps, spread: Spread) -> Floats:
    """Return the two-sided p-values of Student's t for no difference."""
    from scipy.special import stdtr

    return 2 * stdtr(spread.freedom, -np.abs(gaps.mean) * gaps.seeds**0.5 / spread.std)


def half_widths(gaps: Gaps, spread: Spread, alpha: float) -> Floats:
    """Return half the widths of the intervals of confidence 1 - alpha."""
    from scipy.special import stdtrit

    return -stdtrit(spread.freedom, alpha / 2) * spread.std / gaps.seeds**0.5


def _tested(arm: Reached, against: Reached) -> Tested:
    """Hold an arm against another on the seeds that both finished."""
    pairs = zip(arm.accuracies, against.accuracies, strict=True)
    values = [None if a is None or b is None else a - b for a, b in pairs]
    seeds = [at for at, value in enumerate(values) if value is not None]
    if not seeds:
        return Tested(arm, against, seeds, None, None, None)
    gaps = _gaps(arm, against, seeds, [value for value in values if value is not None])
    if len(seeds) < 2:
        return Tested(arm, against, seeds, gaps, None, None)
    spread = spread_of(gaps)
    p_value = float(p_values_of(gaps, spread)) if spread.std > NOTHING else None
    return Tested(arm, against, seeds, gaps, spread, p_value)


def _gaps(arm: Reached, against: Reached, seeds: list[int], values: list[float]) -> Gaps:
    """Return the figures of the differences on some seeds, by images where all are known."""
    a, b = ([reached.right[at] for at in seeds] for reached in (arm, against))
    known = [right for right in (*a, *b) if right is not None]
    if len(known) < 2 * len(seeds) or len({len(right) for right in known}) > 1:
        return gaps_of_accuracies(np.array(values))
    return gaps_between(np.stack(known[: len(seeds)]), np.stack(known[len(seeds) :]))


def _difference(tested: Tested, judged: Judged, margin: float, alpha: float) -> Difference:
    """Return all that is said of two arms."""
    gaps, spread = tested.gaps, tested.spread
    plain = Difference(
        arm=tested.arm.name,
        against=tested.against.name,
        mean=None if gaps is None else float(gaps.mean),
        low=None,
        high=None,
        pairs=len(tested.seeds),
        p_value=tested.p_value,
        confidence=None,
        images=None if gaps is None else gaps.images or None,
        std=None,
        freedom=None,
        by_images=None,
        new_low=None,
        new_high=None,
        margin=margin,
        equal_low=None,
        equal_high=None,
        equal=None,
        detectable=None,
        seeds_needed=None,
        arm_only=None,
        against_only=None,
        mcnemar_p=None,
    )
    if gaps is None:
        return plain
    if spread is None:
        return _of_one_seed(plain, tested)
    mean, std, freedom = float(gaps.mean), float(spread.std), float(spread.freedom)
    half = float(half_widths(gaps, spread, judged.alpha))
    found: dict[str, float | int | bool | None] = {
        "low": mean - half,
        "high": mean + half,
        "confidence": 1 - judged.alpha,
        "std": std,
        "freedom": freedom,
        "by_images": bool(spread.by_images),
    }
    if gaps.images:
        wider = half / std * gaps.seeds**0.5 * float(spread_on_new_images(gaps, spread))
        found |= {"new_low": mean - wider, "new_high": mean + wider}
    if std > NOTHING:
        same = equality(mean, std, gaps.seeds, freedom, margin=margin, alpha=alpha)
        of_images = max(float(gaps.of_images), gaps.of_counting) if gaps.images else None
        found |= {
            "equal_low": same.low,
            "equal_high": same.high,
            "equal": same.equal,
            "detectable": detectable_effect(std, gaps.seeds, of_images, judged.alpha),
            "seeds_needed": seeds_needed(margin, std, of_images, judged.alpha),
        }
    return plain.model_copy(update=found)


def _of_one_seed(plain: Difference, tested: Tested) -> Difference:
    """Return what one seed says: of two networks, if their answers are known."""
    right = [reached.right[tested.seeds[0]] for reached in (tested.arm, tested.against)]
    if plain.images is None or right[0] is None or right[1] is None:
        return plain
    found = discordant(right[0], right[1])
    return plain.model_copy(
        update={
            "arm_only": found.first_only,
            "against_only": found.second_only,
            "mcnemar_p": found.p_value,
        }
    )

"""What the figures of an equivalence say: that it holds, that it does not, or neither.

Theory says of an estimator of its class that the mapped straight-through run parts from the custom
one by a share of its path that falls with the learning rate, as its first power; where two runs are
not the same, that share stays what it is, a power of 0. So the power is what is judged.
"""

from collections.abc import Mapping

from qtool.comparison.statistics.several import ALPHA
from qtool.reports.comparisons import Slope

BETWEEN = 0.5  # the power of theory, 1, and that of runs that are not the same, 0
FACTOR = 2.0  # of the noise: an error that small says nothing against the equivalence


def rule_of(alpha: float) -> str:
    """Return the rule by which it is judged, with intervals that miss so often."""
    return (
        "by the power of the learning rate with which the weight alignment error of mapped falls "
        "(1 in theory, 0 where runs are not the same) over the rates given: equivalent where its "
        f"{_confidence(1 - alpha)} interval lies above 0 and reaches {BETWEEN:g}; not where it "
        f"lies below {BETWEEN:g} and the error at the smallest rate is more than {FACTOR:g} times "
        "that of jitter; else undecided"
    )


def _confidence(share: float) -> str:
    return f"{100 * share:.3g} %"


def is_equivalent(slope: Slope | None, error: float | None, noise: float | None) -> bool | None:
    """Judge by the rule; None where it is undecided.

    Args:
        slope: of mapped.
        error: of mapped at the smallest learning rate.
        noise: of jitter there.
    """
    if slope is None and error == 0:
        return True
    if slope is None or slope.low is None or slope.high is None:
        return None
    if slope.high < BETWEEN:
        within = error is None or noise is None or error <= FACTOR * noise
        return None if within else False
    return True if slope.low > 0 else None


def of_slope(slope: Slope | None) -> str:
    """Say a power and its interval."""
    if slope is None:
        return "no power is known"
    if slope.low is None or slope.high is None:
        return f"power {slope.slope:.2f}, of which too few rates and seeds tell how sure it is"
    sure = _confidence(slope.confidence or 1 - ALPHA)
    return f"power {slope.slope:.2f} ({sure}: {slope.low:.2f} to {slope.high:.2f})"


def sentence(
    what: str, slopes: Mapping[str, Slope | None], *, mapped: str, naive: str, held: bool | None
) -> str:
    """Say what the rule makes of the slopes.

    Args:
        what: the estimator and its equivalent, as in "x {} straight_through".
        slopes: arm -> its slope.
        mapped: name of the arm that is judged.
        naive: name of the arm without the map, "" where there is none.
        held: what `is_equivalent` said.
    """
    verb = {True: "is equivalent to", False: "is not equivalent to", None: "may be equivalent to"}
    says = {
        True: "their difference falls with the learning rate",
        False: "their difference does not vanish with the learning rate",
        None: "undecided, as their difference may vanish with the learning rate or not",
    }
    if held and slopes.get(mapped) is None:
        return f"{what.format(verb[held])}: their runs are the same to the last bit."
    told = f"{what.format(verb[held])}: {says[held]}, {of_slope(slopes.get(mapped))}"
    other = slopes.get(naive)
    beside = f"; without the map, {of_slope(other)}" if other and slopes.get(mapped) else ""
    more = "; more learning rates or seeds would tell" if held is None else ""
    return f"{told}{beside}{more}."

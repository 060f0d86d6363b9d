"""Equal within a margin: said only where a true difference beyond it would have been noticed."""

from dataclasses import dataclass

from qtool.comparison.statistics.several import ALPHA

MARGIN = 0.005  # half a point


@dataclass(frozen=True)
class Equality:
    """What two one-sided tests say.

    Attributes:
        low, high: the interval of confidence 1 - 2 alpha.
        equal: it lies within the margin.
    """

    low: float
    high: float
    equal: bool


def equality(
    mean: float, std: float, seeds: int, freedom: float, *, margin: float, alpha: float = ALPHA
) -> Equality:
    """Test that a difference lies within a margin, by two one-sided t-tests of level alpha.

    Both reject where the interval m +- t(1 - alpha) std / sqrt(n) lies within +- margin.

    Reference: Schuirmann, 1987, J. Pharmacokinetics and Biopharmaceutics 15(6).
    """
    from scipy.special import stdtrit

    half = -float(stdtrit(freedom, alpha)) * std / seeds**0.5
    low, high = mean - half, mean + half
    return Equality(low, high, -margin < low and high < margin)

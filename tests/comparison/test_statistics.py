"""What a comparison says, against SciPy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from qtool.comparison.statistics import Difference, mean_and_std, paired_difference, verdict


def test_the_interval_is_that_of_the_paired_t_test():
    a, b = [0.91, 0.93, 0.92, 0.95], [0.90, 0.94, 0.90, 0.91]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_difference("a", "b", a, b)

    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.pairs == 4


def test_a_failed_seed_drops_out_of_both_arms():
    found = paired_difference("a", "b", [0.9, None, 0.8], [0.8, 0.1, 0.8])

    assert found.pairs == 2
    assert found.mean == pytest.approx(0.05)


def test_one_pair_has_no_interval_and_none_has_nothing():
    one = paired_difference("a", "b", [0.9], [0.8])
    none = paired_difference("a", "b", [None], [0.8])

    assert (one.mean, one.low, one.high) == (pytest.approx(0.1), None, None)
    assert (none.mean, none.pairs) == (None, 0)
    assert "too few seeds" in verdict([one])
    assert "no seed has an accuracy" in verdict([none])


def test_an_arm_against_itself_is_called_different_in_about_five_of_a_hundred_comparisons():
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        a, b = random.normal(0.9, 0.01, (2, 4)).tolist()
        found = paired_difference("a", "b", a, b)
        wrong += "no difference" not in verdict([found])

    assert stats.binomtest(wrong, 400, 0.05).pvalue > 0.01


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.01, 0.02, "a is better than b"),
        (-0.02, -0.01, "a is worse than b"),
        (-0.01, 0.02, "no difference detected"),
        (0.0, 0.0, "equal on every seed"),
        (0.002, 0.002, "+0.20 points on each of 3 seeds, which says nothing of how far seeds"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, says):
    assert says in verdict([Difference("a", "b", (low + high) / 2, low, high, 3)])


def test_the_standard_deviation_is_the_samples():
    mean, spread = mean_and_std([0.1, 0.2, 0.4])

    assert mean == pytest.approx(np.mean([0.1, 0.2, 0.4]))
    assert spread == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([0.5]) == (0.5, None)

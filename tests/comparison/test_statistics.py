"""What a comparison says, against SciPy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from qtool.comparison.statistics import (
    beyond_chance,
    mean_and_std,
    paired_difference,
    verdict,
)
from qtool.reports.comparisons import Difference


def difference(arm, against, mean, low, high, pairs, p_value=None):
    return Difference(
        arm=arm, against=against, mean=mean, low=low, high=high, pairs=pairs, p_value=p_value
    )


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
    assert says in verdict([difference("a", "b", (low + high) / 2, low, high, 3)])


def test_the_standard_deviation_is_the_samples():
    mean, spread = mean_and_std([0.1, 0.2, 0.4])

    assert mean == pytest.approx(np.mean([0.1, 0.2, 0.4]))
    assert spread == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([0.5]) == (0.5, None)


def test_among_several_arms_chance_seldom_shows_anything():
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        base, *arms = random.normal(0.9, 0.01, (9, 4)).tolist()
        gaps = [paired_difference(str(k), "base", arm, base) for k, arm in enumerate(arms)]
        said = verdict(gaps)
        wrong += "better than" in said or "worse than" in said

    assert wrong <= 300 * 0.05 + 12  # without a correction about 90


def test_holm_s_procedure_is_that_of_the_published_example():
    # Holm, 1979: the smallest against alpha / 3, the next against alpha / 2, then alpha
    assert beyond_chance([0.01, 0.04, 0.03]) == [True, False, False]
    assert beyond_chance([0.01, 0.04, 0.02]) == [True, True, True]
    assert beyond_chance([None, 0.04]) == [False, True]
    assert beyond_chance([]) == []


def test_the_p_value_is_that_of_the_paired_t_test():
    a, b = [0.91, 0.93, 0.92, 0.95], [0.90, 0.94, 0.90, 0.91]
    expected = stats.ttest_rel(a, b).pvalue

    assert paired_difference("a", "b", a, b).p_value == pytest.approx(expected)
    assert paired_difference("a", "b", [0.5, 0.5], [0.4, 0.4]).p_value is None


def test_what_holds_alone_but_not_among_others_is_said_so():
    one = difference("a", "b", 0.015, 0.01, 0.02, 4, 0.04)
    other = difference("c", "b", 0.0, -0.01, 0.01, 4, 0.9)

    assert verdict([one]) == "a is better than b: +1.00 to +2.00 points."
    assert "a against b: +1.00 to +2.00 points taken alone, which among 2 comp" in verdict(
        [one, other]
    )


def test_an_arm_that_fails_is_not_better_on_the_seeds_that_are_left():
    found = paired_difference("a", "b", [0.95, 0.953, 0.948, None], [0.90, 0.902, 0.898, 0.5])
    said = verdict([found], {"b": 0, "a": 1})

    assert said.startswith("a failed on one seed.\na against b: +4.")
    assert said.endswith("on the 3 seeds that both finished, but a failed more often.")
    assert "a is better than b" in verdict([found], {"b": 1, "a": 1})
    assert "but b failed more often" in verdict(
        [paired_difference("a", "b", [0.5, 0.502, 0.5], [0.9, 0.9, 0.9])], {"b": 2}
    )

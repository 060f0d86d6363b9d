"""Levels of looks, detectable effects and seeds needed: published tables, SciPy and simulation."""

import numpy as np
import pytest
from scipy import stats

from qtool.comparison.statistics.looks import chance_of_any, pocock_alpha
from qtool.comparison.statistics.power import detectable_effect, power, seeds_needed


@pytest.mark.parametrize(
    ("looks", "published"), [(1, 0.05), (2, 0.0294), (3, 0.0221), (4, 0.0182), (5, 0.0158)]
)
def test_levels_of_looks_at_equal_distances_are_pocock_s(looks: int, published: float) -> None:
    found = pocock_alpha(tuple(range(1, looks + 1)))
    assert found == pytest.approx(published, abs=5e-5)


def test_unequal_looks_find_by_chance_what_they_may() -> None:
    seeds = (3, 5, 10)
    random = np.random.default_rng(0)
    walks = random.standard_normal((400_000, 10)).cumsum(1)[:, [2, 4, 9]] / np.sqrt(seeds)
    for alpha in (0.05, pocock_alpha(seeds)):
        simulated = (np.abs(walks) > stats.norm.isf(alpha / 2)).any(1).mean()
        assert chance_of_any(seeds, [alpha] * 3) == pytest.approx(simulated, abs=0.002)


@pytest.mark.parametrize("freedom", [1.0, 4.0, 9.0])
def test_power_is_the_tail_of_the_noncentral_t(freedom: float) -> None:
    limit = stats.t.ppf(0.975, freedom)
    for shift in (0.5, 2.0, 4.0):
        expected = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        assert power(shift * 2, 2.0, 1, freedom) == pytest.approx(expected, abs=1e-4)


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(1)
    n, freedom, std = 3, 5, 0.01
    effect = detectable_effect(std, n, freedom)
    means = random.normal(effect, std / n**0.5, 200_000)
    stds = std * np.sqrt(random.chisquare(freedom, 200_000) / freedom)
    found = np.abs(means) / stds * n**0.5 > stats.t.ppf(0.975, freedom)
    assert found.mean() == pytest.approx(0.8, abs=0.005)


def test_the_seeds_needed_are_the_fewest() -> None:
    needed = seeds_needed(0.005, 0.006)
    assert needed is not None
    assert power(0.005, 0.006, needed, needed + 1) >= 0.8
    assert power(0.005, 0.006, needed - 1, needed) < 0.8
    assert seeds_needed(0.005, 1.0) is None
    few, alone = seeds_needed(0.01, 0.006), seeds_needed(0.01, 0.006, extra=0)
    assert few is not None
    assert alone is not None
    assert few < alone

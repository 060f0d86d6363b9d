"""Levels of looks, detectable effects and seeds needed: published tables, SciPy and simulation."""

import numpy as np
import pytest
from scipy import stats

from qtool.comparison.statistics.looks import chance_of_any, pocock_alpha
from qtool.comparison.statistics.power import (
    detectable_effect,
    found_shift,
    limits_of_comparison,
    limits_of_t,
    power,
    seeds_needed,
)
from qtool.comparison.statistics.spread import spread_by


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
        assert power(-shift, limits_of_t(freedom)) == pytest.approx(expected, abs=5e-4)


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(1)
    shift, freedom = found_shift(limits_of_t(5)), 5
    stds = np.sqrt(random.chisquare(freedom, 200_000) / freedom)
    found = np.abs(random.normal(shift, 1, 200_000)) / stds > stats.t.ppf(0.975, freedom)
    assert found.mean() == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("ratio", [1.0, 1.4, 2.0, 5.0])
def test_what_a_comparison_detects_is_found_four_times_in_five(n: int, ratio: float) -> None:
    """By seeds and images, or by seeds alone where these contradict the images."""
    random, std = np.random.default_rng(2), 0.01
    of_images = std**2 / ratio
    effect = detectable_effect(std, n, of_images)
    gaps = random.normal(effect, std, (100_000, n))
    spread = spread_by(n, gaps.var(1, ddof=1), np.full(len(gaps), of_images))
    t = np.abs(gaps.mean(1)) * n**0.5 / spread.std
    found = (t > stats.t.ppf(0.975, spread.freedom)).mean()
    assert found == pytest.approx(0.8, abs=0.01)


def test_without_images_a_comparison_detects_what_seeds_do() -> None:
    limits = limits_of_comparison(0.01, 4, None)
    assert np.array_equal(limits, limits_of_t(3))


def test_the_seeds_needed_are_the_fewest() -> None:
    of_images = 0.006**2 / 1.4
    needed = seeds_needed(0.005, 0.006, of_images)
    assert needed is not None
    assert detectable_effect(0.006, needed, of_images) <= 0.005
    assert detectable_effect(0.006, needed - 1, of_images) > 0.005
    assert seeds_needed(0.005, 1.0, of_images) is None
    few, alone = (seeds_needed(0.015, 0.006, known) for known in (of_images, None))
    assert few is not None
    assert alone is not None
    assert few < alone

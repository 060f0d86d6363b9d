"""What a comparison says, against SciPy, by other formulas and by resampling."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from qtool.comparison.statistics.differences import (
    Reached,
    differences_from_first,
    mean_and_std,
)
from qtool.comparison.statistics.equality import equality
from qtool.comparison.statistics.gaps import gaps_between
from qtool.comparison.statistics.pairs import discordant
from qtool.comparison.statistics.several import beyond_chance, holm
from qtool.comparison.statistics.spread import spread_of, spread_on_new_images
from qtool.reports.comparisons import Difference

Rights = NDArray[np.bool_]


def paired(a: list[float | None], b: list[float | None]) -> Difference:
    return differences_from_first([Reached.only("b", b), Reached.only("a", a)])[0]


def drawn(random: np.random.Generator, seeds: int, images: int, hard: int = 60) -> Rights:
    """Draw which images each of some networks gets right: all but `hard` of them are easy."""
    chance = np.ones(images)
    chance[:hard] = np.linspace(0.05, 0.95, hard)
    return random.random((seeds, images)) < chance


def reached(name: str, right: Rights) -> Reached:
    return Reached(name, [float(row.mean()) for row in right], list(right))


def test_without_answers_the_interval_is_that_of_the_paired_t_test() -> None:
    a, b = [0.91, 0.93, 0.92, 0.95], [0.90, 0.94, 0.90, 0.91]
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    found = paired([*a], [*b])

    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.pairs, found.images, found.by_images) == (4, None, False)
    assert paired([0.5, 0.5], [0.4, 0.4]).p_value is None


def test_a_failed_seed_drops_out_of_both_arms() -> None:
    found = paired([0.9, None, 0.8], [0.8, 0.1, 0.8])

    assert found.pairs == 2
    assert found.mean == pytest.approx(0.05)


def test_the_figures_of_answers_are_variances_of_their_table() -> None:
    random = np.random.default_rng(0)
    a, b = drawn(random, 4, 300), drawn(random, 4, 300)
    table = a.astype(float) - b.astype(float)  # [seeds, images]
    found = gaps_between(a, b)

    assert found.mean == pytest.approx(table.mean())
    assert found.of_seeds == pytest.approx(np.var(table.mean(1), ddof=1))
    assert found.of_images == pytest.approx(np.var(table, axis=0, ddof=1).sum() / 300**2)
    assert found.over_images == pytest.approx(np.var(table.mean(0), ddof=1))


def test_the_variance_of_independent_errors_is_what_images_predict() -> None:
    random = np.random.default_rng(1)
    pairs = [gaps_between(drawn(random, 2, 400), drawn(random, 2, 400)) for _ in range(3000)]
    predicted = np.mean([each.of_images for each in pairs])

    assert predicted == pytest.approx(np.mean([each.of_seeds for each in pairs]), rel=0.06)


def test_the_spread_is_the_weighted_mean_of_both_variances() -> None:
    random = np.random.default_rng(2)
    a, b = drawn(random, 3, 500), drawn(random, 3, 500)
    table = a.astype(float) - b.astype(float)
    of_seeds = np.var(table.mean(1), ddof=1)
    of_images = np.var(table, axis=0, ddof=1).sum() / 500**2
    std = ((2 * 2 * of_images + 2 * of_seeds) / 4) ** 0.5
    found = differences_from_first([reached("b", b), reached("a", a)])[0]
    t = table.mean() / (std / 3**0.5)

    assert (found.std, found.freedom, found.by_images) == (pytest.approx(std), 4, True)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))
    half = stats.t.ppf(0.975, 4) * std / 3**0.5
    assert (found.low, found.high) == pytest.approx((table.mean() - half, table.mean() + half))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_seeds_that_contradict_their_images_are_believed_alone(n: int) -> None:
    random = np.random.default_rng(3)
    a, b = drawn(random, n, 500), drawn(random, n, 500)
    a[0, 60:400] = False  # one network has collapsed
    gaps = gaps_between(a, b)
    tail = stats.f.sf(float(gaps.of_seeds) / float(gaps.of_images), n - 1, 1e9)
    found = spread_of(gaps)

    assert bool(found.by_images) == (tail >= (0.01 if n < 4 else 0.1))
    if not found.by_images:
        assert (float(found.std), float(found.freedom)) == (
            pytest.approx(float(gaps.of_seeds) ** 0.5),
            n - 1,
        )


def test_where_nothing_differs_the_spread_is_that_of_rounding_two_counts() -> None:
    right = drawn(np.random.default_rng(4), 1, 500).repeat(2, 0)
    found = differences_from_first([reached("b", right), reached("a", right)])[0]
    rounded = np.random.default_rng(5).uniform(-0.5, 0.5, (2, 200_000)) / 500

    assert found.std == pytest.approx((rounded[0] - rounded[1]).std(), rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high
    assert found.equal


def test_the_error_on_new_images_is_that_of_the_pigeonhole_bootstrap() -> None:
    random = np.random.default_rng(6)
    n, images = 8, 400
    chance = random.beta(0.6, 0.3, images)
    other = np.clip(chance + 0.15 * random.standard_normal(images), 0, 1)
    a, b = random.random((n, images)) < chance, random.random((n, images)) < other
    table = a.astype(float) - b.astype(float)
    gaps = gaps_between(a, b)
    plain = spread_of(gaps)
    by_formula = spread_on_new_images(gaps, plain)
    rows = random.multinomial(n, np.full(n, 1 / n), 20_000)
    columns = random.multinomial(images, np.full(images, 1 / images), 20_000)
    resampled = ((rows @ table) * columns).sum(1) / (n * images)
    # Resampling seeds and images counts what is in single cells three times (Owen, 2007, theorem
    # 5.1), but for the degree of freedom that a variance over n resampled seeds loses.
    of_seeds, of_cells = float(gaps.of_seeds) / n, float(gaps.of_images) / n
    bootstrap = np.var(resampled) - (2 - 1 / n) * of_cells + of_seeds / n
    by_own_seeds = float(by_formula) ** 2 - float(plain.std) ** 2 / n + of_seeds

    assert by_own_seeds == pytest.approx(bootstrap, rel=0.05)
    assert by_formula > plain.std / n**0.5


def test_the_standard_deviation_is_the_samples() -> None:
    mean, spread = mean_and_std([0.1, 0.2, 0.4])

    assert mean == pytest.approx(np.mean([0.1, 0.2, 0.4]))
    assert spread == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([0.5]) == (0.5, None)


def test_holm_s_procedure_is_that_of_the_published_example() -> None:
    # Holm, 1979: the smallest against alpha / 3, the next against alpha / 2, then alpha
    assert beyond_chance([0.01, 0.04, 0.03]) == [True, False, False]
    assert beyond_chance([0.01, 0.04, 0.02]) == [True, True, True]
    assert beyond_chance([None, 0.04]) == [False, True]
    assert beyond_chance([]) == []


def test_an_interval_at_holm_s_level_holds_nothing_just_where_nothing_is_shown() -> None:
    random = np.random.default_rng(7)
    seen = set()
    for _ in range(200):
        p_values = [float(p) for p in random.random(4) ** 4]
        for p, judged in zip(p_values, holm(p_values), strict=True):
            assert judged.shown == (p <= judged.alpha)
            seen.add(judged.shown)
    assert seen == {True, False}


def test_equality_is_two_one_sided_tests() -> None:
    std, n, freedom, margin = 0.004, 5, 7.0, 0.005
    for mean in (-0.003, 0.0, 0.001, 0.004):
        error = std / n**0.5
        below = stats.t.sf((mean + margin) / error, freedom)
        above = stats.t.cdf((mean - margin) / error, freedom)
        found = equality(mean, std, n, freedom, margin=margin)
        assert found.equal == (max(below, above) < 0.05)


def test_mcnemar_s_test_is_a_coin_for_each_image_that_one_network_gets_right() -> None:
    first, second = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    first[:9], second[5:7], second[50] = True, True, True
    found = discordant(first, second)

    assert (found.first_only, found.second_only) == (7, 1)
    assert found.p_value == pytest.approx(stats.binomtest(1, 8, 0.5).pvalue)
    assert discordant(first, first).p_value == 1.0

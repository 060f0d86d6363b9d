"""A few cells of `tests.comparison.simulation`, and that what it draws has the figures it says."""

import numpy as np
import pytest

from qtool.comparison.statistics.gaps import gaps_of
from tests.comparison.simulated import CLASSES, Nature, draw
from tests.comparison.simulation import (
    NATURES,
    false_alarms,
    gap_std,
    simulated,
)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.4, 5.0])
def test_drawn_answers_have_the_ratio_of_variances_that_is_asked_for(ratio: float) -> None:
    nature = Nature(ratio=ratio)
    gaps = draw(nature, 1500, 2, 4, np.random.default_rng(0)).gaps(1, slice(0, 4))
    found = gaps.of_seeds.mean() / gaps.of_images.mean()

    assert found == pytest.approx(ratio, rel=0.08)
    assert gaps.of_seeds.mean() ** 0.5 == pytest.approx(gap_std(nature), rel=0.05)
    assert gaps.mean.mean() == pytest.approx(0, abs=4 * gap_std(nature) / (1500 * 4) ** 0.5)


def test_its_figures_are_those_of_the_whole_table() -> None:
    nature = Nature(collapses=0.3)
    drawn = draw(nature, 5, 2, 3, np.random.default_rng(1))
    easy = drawn.easy.repeat((nature.images - nature.hard) // CLASSES, -1)
    table = np.concatenate([drawn.hard, easy], -1)
    expected = gaps_of((table[:, 1] - table[:, 0]).astype(np.int8), nature.images)
    found = drawn.gaps(1, slice(0, 3))

    for name in ("mean", "of_seeds", "of_images", "over_images"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name


@pytest.mark.parametrize("nature", NATURES[2:16:6], ids=str)
def test_chance_names_few_winners(nature: Nature) -> None:
    named, held = false_alarms(nature, 1000, 5, seeds=(2, 3), others=(1, 4))

    assert named.max() <= 0.065 + 2 * 0.007
    assert held.min() >= 0.935


def test_a_large_effect_is_found_by_three_seeds() -> None:
    nature = Nature(ratio=1.4)
    effect = 2.6 * gap_std(nature)
    found = simulated(nature, 2000, 3, np.random.default_rng(2), effect=effect)

    assert found.shown.mean() >= 0.86

"""What is said of differences, in words."""

import numpy as np
import pytest

from qtool.comparison.statistics.differences import Reached, differences_from_first
from qtool.comparison.statistics.verdicts import sentences_on_networks, verdict
from qtool.reports.comparisons import Difference
from tests.comparison.test_statistics import drawn, reached


def gaps(a: list[float | None], b: list[float | None]) -> list[Difference]:
    return differences_from_first([Reached.only("b", b), Reached.only("a", a)])


WINNER = Difference(
    arm="a",
    against="b",
    mean=0.009,
    low=0.003,
    high=0.015,
    pairs=5,
    p_value=0.001,
    images=500,
    by_images=True,
    new_low=-0.004,
    new_high=0.022,
    margin=0.005,
)
EVEN = WINNER.model_copy(
    update={
        "mean": 0.0005,
        "low": -0.006,
        "high": 0.007,
        "p_value": 0.7,
        "detectable": 0.014,
        "seeds_needed": 19,
    }
)


def test_a_winner_is_said_with_what_is_certain_on_these_images_and_on_new_ones() -> None:
    assert verdict([WINNER]) == (
        "a is better than b by 0.9 points (0.3 to 1.5; 5 seeds) on these 500 images; "
        "on new images 0.9 (-0.4 to 2.2), not certain."
    )
    assert "(0.3 to 1.5; 5 seeds, Holm over 2)" in verdict([WINNER, EVEN])
    turned = {"mean": -0.009, "low": -0.015, "high": -0.003, "new_low": -0.016, "new_high": -0.002}
    assert verdict([WINNER.model_copy(update=turned)]) == (
        "a is worse than b by 0.9 points (0.3 to 1.5; 5 seeds) on these 500 images; "
        "on new images 0.9 (0.2 to 1.6)."
    )
    assert "5 seeds, by seeds alone)" in verdict([WINNER.model_copy(update={"by_images": False})])


def test_no_winner_is_said_with_what_would_have_been_found() -> None:
    assert verdict([EVEN]) == (
        "a against b: no difference detected; 1.4 points would have been found 4 times in 5, "
        "0.5 points take 19 seeds."
    )
    many = EVEN.model_copy(update={"seeds_needed": None})
    assert verdict([many]).endswith("0.5 points take more than 1,000 seeds.")


def test_equal_is_said_with_the_margin() -> None:
    same = {"equal": True, "equal_low": -0.002, "equal_high": 0.003}
    assert verdict([EVEN.model_copy(update=same)]) == (
        "a against b: equal to within 0.5 points (90 %: -0.2 to +0.3)."
    )
    tiny = WINNER.model_copy(update={"low": 0.0004, "high": 0.003, "mean": 0.0017, **same})
    assert "images, and equal to within 0.5 points (90 %: -0.2 to +0.3); on new" in verdict([tiny])


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([0.92, 0.93, 0.924], [0.91, 0.92, 0.915], "a is better than b by 1.0 points (0.8 to 1.1"),
        ([0.91, 0.92, 0.915], [0.92, 0.93, 0.924], "a is worse than b by 1.0 points (0.8 to 1.1"),
        ([0.91, 0.94, 0.92], [0.92, 0.93, 0.92], "no difference detected; 3.3 points would have"),
        ([0.91, 0.94], [0.91, 0.94], "a against b: equal on every seed."),
        ([0.912, 0.942], [0.91, 0.94], "+0.20 points on each of 2 seeds, which says nothing of h"),
        ([0.9], [0.8], "+10.00 points on one seed, too few seeds to say anything."),
        ([None], [0.8], "no seed has an accuracy in both."),
    ],
)
def test_of_accuracies_alone(a: list[float | None], b: list[float | None], says: str) -> None:
    assert says in verdict(gaps(a, b))


def test_one_seed_is_two_networks() -> None:
    random = np.random.default_rng(0)
    b = drawn(random, 1, 500)
    a = b.copy()
    a[0, np.flatnonzero(~b[0])[:8]] = True
    found = differences_from_first([reached("b", b), reached("a", a)])

    assert verdict(found) == (
        "a against b: +1.60 points on one seed; of 500 images 8 only a gets right, 0 only b, these "
        "two networks differ (exact McNemar p = 0.0078), and one seed says nothing of the methods."
    )
    same = differences_from_first([reached("b", b), reached("a", b)])
    assert "the two networks are right on the same of 500 images" in verdict(same)


def test_an_arm_that_fails_is_not_better_on_the_seeds_that_are_left() -> None:
    found = gaps([0.95, 0.953, 0.948, None], [0.90, 0.902, 0.898, 0.5])
    said = verdict(found, {"b": 0, "a": 1})

    assert said.startswith("a failed on one seed.\na against b: +4.")
    assert said.endswith("on the 3 seeds that both finished, but a failed more often.")
    assert "a is better than b" in verdict(found, {"b": 1, "a": 1})
    other = gaps([0.5, 0.502, 0.5], [0.9, 0.9, 0.9])
    assert "but b failed more often" in verdict(other, {"b": 2})


def test_nothing_is_compared_with_nothing() -> None:
    assert verdict([]) == "There is only one arm, so nothing is compared."


def test_several_networks_are_told_apart_by_holm_s_procedure() -> None:
    random = np.random.default_rng(1)
    first = drawn(random, 1, 500)
    far, near = first.copy(), first.copy()
    far[0, np.flatnonzero(~first[0])[:12]] = True
    near[0, np.flatnonzero(~first[0])[:6]] = True  # alone p = 0.031
    made = [reached(name, each) for name, each in (("b", first), ("far", far), ("near", near))]
    said = sentences_on_networks(differences_from_first([*made, reached("like", first)]))

    assert said[0] == (
        "far against b: of 500 images 12 only far gets right, 0 only b, these two networks differ "
        "(exact McNemar p = 0.00049)."
    )
    assert "6 only near gets right, 0 only b, which may be chance (exact McNemar p" in said[1]
    assert said[2] == "like against b: the two networks are right on the same of 500 images."
    assert "these two" in sentences_on_networks(differences_from_first(made[::2]))[0]

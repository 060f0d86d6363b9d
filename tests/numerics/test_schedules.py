"""Schedules: closed forms at chosen points, and rest outside the window."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import RecipeError
from qtool.numerics.schedules import SCHEDULES, Schedule, in_phases, with_warmup

CUBES = [0.271, 0.488, 0.657, 0.784, 0.875, 0.936, 0.973, 0.992, 0.999, 1.0]
UP = {"start": 0.0, "stop": 1.0}
DOWN = {"start": 0.05, "stop": 0.01}
LATE = {"window": [0.2, 0.6]}
DECADES = {"values": [0.1, 0.01, 0.001], "at": [0.4, 0.8]}

TABLE: list[tuple[str, dict[str, Any], float, float]] = [
    ("constant", {"value": 0.3}, 0.0, 0.3),
    ("constant", {"value": 0.3}, 0.7, 0.3),
    ("linear", UP, 0.25, 0.25),
    ("linear", DOWN, 0.5, 0.03),
    ("linear", UP | LATE, 0.1, 0.0),
    ("linear", UP | LATE, 0.3, 0.25),
    ("linear", UP | LATE, 0.9, 1.0),
    ("cosine", DOWN, 0.0, 0.05),
    ("cosine", DOWN, 1 / 3, 0.04),  # cos(pi / 3) = 1/2
    ("cosine", DOWN, 0.5, 0.03),
    ("cosine", DOWN, 2 / 3, 0.02),
    ("cosine", DOWN | LATE, 0.4, 0.03),
    ("cosine", DOWN | LATE, 0.6, 0.01),
    *[("cubic", UP, (k + 1) / 10, cube) for k, cube in enumerate(CUBES)],
    ("cubic", DOWN, 0.5, 0.05 - 0.04 * 7 / 8),
    ("cubic", UP | LATE, 0.2, 0.0),
    ("cubic", UP | LATE, 0.4, 0.875),
    ("cubic", UP | {"window": [0.0, 0.8]}, 0.08, 0.271),
    ("polynomial", UP, 0.5, 0.75),
    ("polynomial", UP | {"power": 1.0}, 0.3, 0.3),
    ("polynomial", UP | {"power": 0.5}, 0.75, 0.5),
    ("polynomial", DOWN | LATE | {"power": 4.0}, 0.4, 0.05 - 0.04 * 15 / 16),
    *[("polynomial", UP | {"power": 3.0}, (k + 1) / 10, cube) for k, cube in enumerate(CUBES)],
    ("exponential", {"start": 0.1, "stop": 0.001}, 0.5, 0.01),
    ("exponential", {"start": 1.0, "stop": 8.0} | LATE, 0.2 + 0.4 / 3, 2.0),
    ("exponential", {"start": 1e-300, "stop": 1e300}, 0.5, 1.0),
    ("step", DOWN, 0.49, 0.05),
    ("step", DOWN, 0.5, 0.01),
    ("step", DOWN | {"at": [0.25, 0.5, 0.75, 1.0]}, 0.5, 0.03),
    ("step", DOWN | {"at": [0.25, 0.5, 0.75, 1.0]}, 0.99, 0.02),
    ("step", DOWN | LATE | {"at": [0.5, 0.75]}, 0.4, 0.03),
    ("step", DOWN | LATE | {"at": [0.5, 0.75]}, 0.5, 0.01),
    ("piecewise", DECADES, 0.0, 0.1),
    ("piecewise", DECADES, 0.39, 0.1),
    ("piecewise", DECADES, 0.4, 0.01),
    ("piecewise", DECADES, 0.79, 0.01),
    ("piecewise", DECADES, 0.8, 0.001),
    ("piecewise", DECADES, 1.0, 0.001),
    ("piecewise", DECADES | {"window": [0.5, 1.0]}, 0.7, 0.01),
]
MOVING = [name for name in SCHEDULES.names() if "window" in SCHEDULES.parameters(name)]
JUMPING = [name for name in MOVING if "at" in SCHEDULES.parameters(name)]

each_moving = pytest.mark.parametrize("name", MOVING)
each_jumping = pytest.mark.parametrize("name", JUMPING)
each_with_ends = pytest.mark.parametrize("name", [n for n in MOVING if n != "piecewise"])
share = st.floats(0.0, 1.0)
value = st.floats(-10.0, 10.0)
positive = st.floats(0.01, 10.0)


def build(name: str, start: float, stop: float, **params: Any) -> Schedule:
    """Return a schedule from `start` to `stop`, in the words of each."""
    if name == "piecewise":
        return SCHEDULES.build(name, values=[start, stop], **({"at": [0.5]} | params))
    return SCHEDULES.build(name, start=start, stop=stop, **params)


def ends_of(name: str) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(*[positive if name == "exponential" else value] * 2)


@pytest.mark.parametrize(("name", "params", "progress", "expected"), TABLE)
def test_a_schedule_has_the_value_worked_out_by_hand(
    name: str, params: dict[str, Any], progress: float, expected: float
) -> None:
    found = SCHEDULES.build(name, **params)(progress)
    assert math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-15)


def test_every_schedule_is_in_the_table() -> None:
    assert {row[0] for row in TABLE} == set(SCHEDULES.names())


def test_every_schedule_but_constant_has_a_window() -> None:
    assert set(SCHEDULES.names()) - set(MOVING) == {"constant"}


@each_moving
@given(data=st.data(), window=st.tuples(share, share).map(sorted), progress=share)
def test_a_schedule_rests_at_start_before_its_window_and_at_stop_after_it(
    name: str, data: st.DataObject, window: list[float], progress: float
) -> None:
    start, stop = data.draw(ends_of(name))
    found = build(name, start, stop, window=window)(progress)
    if progress >= window[1]:
        assert found == stop
    elif progress <= window[0]:
        assert found == start
    else:
        assert min(start, stop) - 1e-9 <= found <= max(start, stop) + 1e-9
        assert name not in JUMPING or found in (start, stop)


@each_moving
@given(data=st.data())
def test_without_a_window_a_schedule_runs_from_start_to_stop(
    name: str, data: st.DataObject
) -> None:
    start, stop = data.draw(ends_of(name))
    schedule = build(name, start, stop)
    assert schedule(0.0) == start
    assert schedule(1.0) == stop


@each_moving
def test_a_schedule_never_turns_back(name: str) -> None:
    stop = 0.5 if name == "exponential" else -1.0
    schedule = build(name, 3.0, stop, window=[0.1, 0.7])
    seen = [schedule(k / 200) for k in range(201)]
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 2 if name in JUMPING else len(set(seen)) > 100


@each_moving
def test_an_empty_window_is_a_step(name: str) -> None:
    schedule = build(name, 0.2, 1.0, window=[0.5, 0.5])
    assert [schedule(p) for p in (0.0, 0.49, 0.5, 1.0)] == [0.2, 0.2, 1.0, 1.0]


@each_jumping
@pytest.mark.parametrize("epochs", [1, 3, 7, 10, 30, 200])
def test_a_jump_takes_effect_at_its_share_and_not_a_training_step_later(
    name: str, epochs: int
) -> None:
    for first in range(10):
        window = [first / 10, 1.0]
        for k in range(1, 10):
            schedule = build(name, 3.0, 1.0, at=[k / 10], window=window)
            steps = 100 * epochs  # the jump lies at a whole one: (10 first + k (10 - first)) %
            jump = (10 * first + k * (10 - first)) * epochs
            assert [schedule(n / steps) for n in (jump - 1, jump)] == [3.0, 1.0]


def test_many_jumps_make_equal_stairs() -> None:
    schedule = SCHEDULES.build("step", start=0.0, stop=5.0, at=[0.1, 0.2, 0.5, 0.7, 1.0])
    seen = [schedule(p) for p in (0.0, 0.1, 0.2, 0.5, 0.7, 0.99, 1.0)]
    assert seen == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0], rel=1e-15)
    assert seen[-1] == 5.0


@given(start=value, stop=value, power=st.floats(0.1, 6.0), progress=share)
def test_a_polynomial_is_its_formula(
    start: float, stop: float, power: float, progress: float
) -> None:
    found = SCHEDULES.build("polynomial", start=start, stop=stop, power=power)(progress)
    expected = start + (stop - start) * (1 - (1 - progress) ** power)
    assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)


@given(start=positive, stop=positive, progress=share)
def test_an_exponential_is_a_straight_line_of_logarithms(
    start: float, stop: float, progress: float
) -> None:
    found = SCHEDULES.build("exponential", start=start, stop=stop)(progress)
    expected = math.log(start) + progress * (math.log(stop) - math.log(start))
    assert math.isclose(math.log(found), expected, rel_tol=1e-12, abs_tol=1e-12)


@each_moving
@pytest.mark.parametrize(
    "window", [[], [0.5], [0.6, 0.5], [-0.1, 1.0], [0.0, 1.1], [0.0, 0.5, 1.0], [math.nan, 1.0]]
)
def test_what_is_no_window_is_refused(name: str, window: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"window: .* is not a window \[a, b\] with 0 <= a <= b"):
        build(name, 0.1, 1.0, window=window)


@each_moving
@pytest.mark.parametrize("window", ["[0, 1]", 0.5, [0.0, "1"], None])
def test_a_window_of_the_wrong_type_is_refused(name: str, window: Any) -> None:
    with pytest.raises(RecipeError, match=r"^window: "):
        build(name, 0.1, 1.0, window=window)


@each_moving
def test_a_window_may_be_written_in_whole_numbers(name: str) -> None:
    assert build(name, 1, 2, window=[0, 1])(1.0) == 2


@each_with_ends
@pytest.mark.parametrize("bad", [math.inf, math.nan, "0.1", True, None])
def test_start_and_stop_are_finite_numbers(name: str, bad: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"^start: .*is not a (finite )?number(; leave out the quotes)?$"
    ):
        SCHEDULES.build(name, start=bad, stop=1.0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("exponential", {"start": 0.0, "stop": 1.0}, "start: 0.0 is not more than 0.0"),
        ("exponential", {"start": 1.0, "stop": -1.0}, "stop: -1.0 is not more than 0.0"),
        ("polynomial", UP | {"power": 0.0}, "power: 0.0 is not more than 0.0"),
        ("polynomial", UP | {"power": math.inf}, "power: inf is not a finite number"),
        ("polynomial", UP | {"power": True}, "power: true is not a number"),
        ("step", UP | {"at": 0.5}, "at: 0.5 is not a list"),
        ("step", UP | {"at": ["0.5"]}, "at: '0.5' is not a number"),
        ("piecewise", DECADES | {"values": [0.1, math.inf, 0.1]}, "values: inf is not a finite"),
        ("piecewise", DECADES | {"values": [0.1, True, 0.1]}, "values: true is not a number"),
        ("piecewise", {"values": [0.1, 0.2]}, "at: missing; piecewise needs it"),
        ("piecewise", {"at": [0.1]}, "values: missing; piecewise needs it"),
    ],
)
def test_parameters_out_of_range_are_refused(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        SCHEDULES.build(name, **params)


@each_jumping
@pytest.mark.parametrize(
    "at", [[], [0.0], [-0.1, 0.5], [0.5, 0.5], [0.6, 0.5], [0.5, 1.1], [math.nan], [0.5, math.nan]]
)
def test_shares_that_do_not_rise_inside_the_window_are_refused(name: str, at: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"at: .* are not rising shares of the window, 0 < a < b"):
        build(name, 0.0, 1.0, at=at)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
def test_piecewise_needs_one_value_more_than_shares(values: list[float]) -> None:
    schedule = SCHEDULES.build("piecewise", values=values, at=[0.4, 0.8])
    with pytest.raises(ValueError, match=rf"2 shares in `at` needs 3 values, got {len(values)}:"):
        schedule(0.0)


@given(warmup=st.floats(0.01, 1.0), progress=share)
def test_warmup_raises_a_schedule_from_zero_and_then_leaves_it_alone(
    warmup: float, progress: float
) -> None:
    schedule = SCHEDULES.build("cosine", start=0.05, stop=0.0)
    found = with_warmup(schedule, warmup)(progress)
    if progress >= warmup:
        assert found == schedule(progress)
    else:
        assert math.isclose(
            found, schedule(progress) * progress / warmup, rel_tol=1e-12, abs_tol=1e-300
        )


def test_warmup_starts_at_zero_and_no_warmup_does_not() -> None:
    schedule = SCHEDULES.build("constant", value=0.4)
    assert [with_warmup(schedule, 0.1)(p) for p in (0.0, 0.05, 0.1)] == [0.0, 0.2, 0.4]
    assert with_warmup(schedule, 0.0)(0.0) == 0.4


def test_phases_run_through_a_schedule_again_and_rest_at_its_end() -> None:
    window = [0.25, 0.75]
    once = SCHEDULES.build("linear", start=0.0, stop=1.0, window=window)
    twice = in_phases(once, 2, window)
    at = [0.0, 0.25, 0.375, 0.4375, 0.5, 0.625, 0.6875, 0.75, 1.0]
    assert [twice(p) for p in at] == pytest.approx([0, 0, 0.5, 0.75, 0, 0.5, 0.75, 1, 1], abs=1e-9)
    assert [twice(p) for p in (0.75, 1.0)] == [1.0, 1.0]


@given(progress=share, start=share, width=share)
def test_one_phase_is_the_schedule_itself(progress: float, start: float, width: float) -> None:
    window = [start, start + (1 - start) * width]
    once = SCHEDULES.build("cubic", start=0.0, stop=1.0, window=window)
    assert in_phases(once, 1, window)(progress) == once(progress)

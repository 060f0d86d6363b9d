"""Schedules: closed forms at chosen points, and rest outside the window."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import RecipeError
from qtool.numerics.schedules import SCHEDULES, with_warmup

CUBES = [0.271, 0.488, 0.657, 0.784, 0.875, 0.936, 0.973, 0.992, 0.999, 1.0]
UP = {"start": 0.0, "stop": 1.0}
DOWN = {"start": 0.05, "stop": 0.01}
LATE = {"window": [0.2, 0.6]}

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
]
MOVING = [name for name in SCHEDULES.names() if "window" in SCHEDULES.parameters(name)]

each_moving = pytest.mark.parametrize("name", MOVING)
share = st.floats(0.0, 1.0)
value = st.floats(-10.0, 10.0)


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
@given(start=value, stop=value, window=st.tuples(share, share).map(sorted), progress=share)
def test_a_schedule_rests_at_start_before_its_window_and_at_stop_after_it(
    name: str, start: float, stop: float, window: list[float], progress: float
) -> None:
    found = SCHEDULES.build(name, start=start, stop=stop, window=window)(progress)
    if progress >= window[1]:
        assert found == stop
    elif progress <= window[0]:
        assert found == start
    else:
        assert min(start, stop) - 1e-9 <= found <= max(start, stop) + 1e-9


@each_moving
@given(start=value, stop=value)
def test_without_a_window_a_schedule_runs_from_start_to_stop(
    name: str, start: float, stop: float
) -> None:
    schedule = SCHEDULES.build(name, start=start, stop=stop)
    assert schedule(0.0) == start
    assert schedule(1.0) == stop


@each_moving
def test_a_schedule_never_turns_back(name: str) -> None:
    schedule = SCHEDULES.build(name, start=3.0, stop=-1.0, window=[0.1, 0.7])
    seen = [schedule(k / 200) for k in range(201)]
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 100


@each_moving
def test_an_empty_window_is_a_step(name: str) -> None:
    schedule = SCHEDULES.build(name, start=0.2, stop=1.0, window=[0.5, 0.5])
    assert [schedule(p) for p in (0.0, 0.49, 0.5, 1.0)] == [0.2, 0.2, 1.0, 1.0]


@each_moving
@pytest.mark.parametrize(
    "window", [[], [0.5], [0.6, 0.5], [-0.1, 1.0], [0.0, 1.1], [0.0, 0.5, 1.0], [math.nan, 1.0]]
)
def test_what_is_no_window_is_refused(name: str, window: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"window: .* is not a window \[a, b\] with 0 <= a <= b"):
        SCHEDULES.build(name, start=0.0, stop=1.0, window=window)


@each_moving
@pytest.mark.parametrize("window", ["[0, 1]", 0.5, [0.0, "1"], None])
def test_a_window_of_the_wrong_type_is_refused(name: str, window: Any) -> None:
    with pytest.raises(RecipeError, match=r"^window: "):
        SCHEDULES.build(name, start=0.0, stop=1.0, window=window)


@each_moving
def test_a_window_may_be_written_in_whole_numbers(name: str) -> None:
    assert SCHEDULES.build(name, start=0, stop=2, window=[0, 1])(1.0) == 2


@each_moving
@pytest.mark.parametrize("bad", [math.inf, math.nan, "0.1", True, None])
def test_start_and_stop_are_finite_numbers(name: str, bad: Any) -> None:
    with pytest.raises(RecipeError, match=r"^start: .*is not a (finite )?number$"):
        SCHEDULES.build(name, start=bad, stop=1.0)


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

"""Schedules: how a number changes during training.

Each maps progress to a value. Progress is the share of training done, from 0.0 to 1.0, so that a
recipe keeps its meaning when epochs change. All but `constant` move inside `window: [a, b]`, a part
of progress, and rest at their first value (`start`) before it and at their last one (`stop`) after
it. To add one, write a function here and decorate it with `@SCHEDULES.add`; what else is true of
it stands in the decorator: see `ScheduleFacts`.

Examples:
    >>> alpha = SCHEDULES.build("cubic", start=0.0, stop=1.0, window=[0.0, 0.8])
    >>> [alpha(progress) for progress in (0.0, 0.4, 0.8, 1.0)]
    [0.0, 0.875, 1.0, 1.0]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

from qtool.problems import shown
from qtool.registry import Registry

Schedule = Callable[[float], float]
MOVES = "may be scheduled"  # put into the annotation of a parameter that takes a schedule too


@dataclass(frozen=True, kw_only=True)
class ScheduleFacts:
    """What is true of a schedule beside its values."""

    rises: bool = False
    """It reaches `stop` at its end only, so that it may go the way in several phases."""


# arithmetic on plain numbers: who moves a tensor by them sees that it can hold their values
SCHEDULES = Registry[Callable[..., float]]("schedule", largest=math.inf).with_facts(ScheduleFacts)


def _is_window(value: list[float]) -> list[float]:
    if len(value) != 2 or not 0.0 <= value[0] <= value[1] <= 1.0:
        raise ValueError(f"{value} is not a window [a, b] with 0 <= a <= b <= 1")
    return value


def _are_shares(value: list[float]) -> list[float]:
    rising = all(a < b for a, b in pairwise([0.0, *value]))
    if not (value and rising and value[-1] <= 1.0):
        raise ValueError(f"{value} are not rising shares of the window, 0 < a < b < ... <= 1")
    return value


Window = Annotated[list[float], AfterValidator(_is_window)]
Shares = Annotated[list[float], AfterValidator(_are_shares)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WHOLE = [0.0, 1.0]
HALFWAY = [0.5]
ROUNDING = 1e-12  # a window's arithmetic must not put a jump off to the next training step


def _share(progress: float, window: list[float]) -> float:
    """Return how much of the window is done, 0..1; 1 from its end on, also when it is empty."""
    first, last = window
    if progress >= last:
        return 1.0
    return 0.0 if progress <= first else (progress - first) / (last - first)


def _between(start: float, stop: float, share: float) -> float:
    """Return start at 0 and stop at 1, both exactly."""
    return start * (1 - share) + stop * share


def _jumps_made(progress: float, window: list[float], at: list[float]) -> int:
    """Return how many of the jumps at these shares of the window lie behind."""
    t = _share(progress, window)
    return sum(t >= share - ROUNDING for share in at)


@SCHEDULES.add
def constant(progress: float, *, value: float) -> float:
    """Stay at one value.

    v(p) = value
    """
    del progress
    return value


@SCHEDULES.add(rises=True)
def linear(progress: float, *, start: float, stop: float, window: Window = WHOLE) -> float:
    """Move in a straight line.

    v(t) = start + (stop - start) * t, with t the share of the window that is done
    """
    return _between(start, stop, _share(progress, window))


@SCHEDULES.add(rises=True)
def cosine(progress: float, *, start: float, stop: float, window: Window = WHOLE) -> float:
    """Move along half a cosine: slowly, fast, slowly.

        v(t) = stop + (start - stop) * (1 + cos(pi t)) / 2

    Reference: Loshchilov and Hutter, 2016, arXiv:1608.03983.
    """
    t = _share(progress, window)
    return _between(start, stop, (1 - math.cos(math.pi * t)) / 2)


@SCHEDULES.add(rises=True)
def cubic(progress: float, *, start: float, stop: float, window: Window = WHOLE) -> float:
    """Move fast at first and ever more slowly: alpha-blending's schedule.

        v(t) = start + (stop - start) * (1 - (1 - t)^3)

    Reference: Liu and Mattina, 2019, arXiv:1903.01061.
    """
    t = _share(progress, window)
    return _between(start, stop, 1 - (1 - t) ** 3)


@SCHEDULES.add(rises=True)
def polynomial(
    progress: float, *, start: float, stop: float, power: Positive = 2.0, window: Window = WHOLE
) -> float:
    """Move fast at first and ever more slowly, the more so the higher the power.

    v(t) = start + (stop - start) * (1 - (1 - t)^power);  power 1 is linear, 3 is cubic
    """
    t = _share(progress, window)
    return _between(start, stop, 1 - (1 - t) ** power)


@SCHEDULES.add(rises=True)
def exponential(
    progress: float, *, start: Positive, stop: Positive, window: Window = WHOLE
) -> float:
    """Multiply by the same factor in every equal stretch of the window.

    v(t) = start * (stop / start)^t
    """
    t = _share(progress, window)
    return start ** (1 - t) * stop**t  # the quotient of two extremes would overflow


@SCHEDULES.add
def step(
    progress: float, *, start: float, stop: float, at: Shares = HALFWAY, window: Window = WHOLE
) -> float:
    """Jump in equal parts from start to stop, once at each share of the window in `at`.

    v(t) = start + (stop - start) * #{a in at: t >= a} / #at
    """
    return _between(start, stop, _jumps_made(progress, window, at) / len(at))


@SCHEDULES.add
def piecewise(
    progress: float, *, values: list[Finite], at: Shares, window: Window = WHOLE
) -> float:
    """Stay at values[0] until the first share of the window in `at`, then at values[1], and so on.

        v(t) = values[#{a in at: t >= a}]

    Raises:
        ValueError: If there is not one value more than there are shares.
    """
    if len(values) != len(at) + 1:
        raise ValueError(
            f"piecewise with {len(at)} shares in `at` needs {len(at) + 1} values, "
            f"got {len(values)}: one before the first share and one from each share on"
        )
    return values[_jumps_made(progress, window, at)]


def with_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """Return `schedule`, raised linearly from 0 over the first `warmup` share of training.

    v(p) = schedule(p) * min(1, p / warmup)

    Examples:
        >>> rate = with_warmup(SCHEDULES.build("constant", value=0.5), warmup=0.25)
        >>> [rate(progress) for progress in (0.0, 0.125, 0.25, 1.0)]
        [0.0, 0.25, 0.5, 0.5]
    """
    if not warmup:
        return schedule
    return partial(_warmed_up, schedule=schedule, warmup=warmup)


def wrong_warmup(warmup: object) -> str:
    """Say what is wrong with a warmup, "" if nothing."""
    if isinstance(warmup, int | float) and not isinstance(warmup, bool) and 0.0 <= warmup < 1.0:
        return ""
    return f"{shown(warmup)} is not a share of training, 0 <= warmup < 1"


def _warmed_up(progress: float, schedule: Schedule, warmup: float) -> float:
    return schedule(progress) * min(1.0, progress / warmup)


def in_phases(schedule: Schedule, phases: int, window: list[float]) -> Schedule:
    """Return a `schedule` that moves within `window` so that it moves `phases` times there.

    v(t) = schedule at the share (phases t) mod 1 of the window, and at its end from t = 1 on
    """
    return partial(_again, schedule=schedule, phases=phases, window=window)


def _again(progress: float, schedule: Schedule, phases: int, window: list[float]) -> float:
    first, last = window
    share = _share(progress, window)
    if phases == 1 or share in (0.0, 1.0):
        return schedule(progress)
    within = (phases * share + ROUNDING) % 1.0
    return schedule(first + within * (last - first))

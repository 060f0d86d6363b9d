"""Schedules: how a number changes during training.

Each maps progress to a value. Progress is the share of training done, from 0.0 to 1.0, so that a
recipe keeps its meaning when epochs change. All but `constant` move from `start` to `stop` inside
`window: [a, b]`, a part of progress, and rest at `start` before it and at `stop` after it. To add
one, write a function here and decorate it with `@SCHEDULES.add`.
"""

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from qtool.registry import Registry

Schedule = Callable[[float], float]
SCHEDULES: Registry[Callable[..., float]] = Registry("schedule")


def _is_window(value: list[float]) -> list[float]:
    if len(value) != 2 or not 0.0 <= value[0] <= value[1] <= 1.0:
        raise ValueError(f"{value} is not a window [a, b] with 0 <= a <= b <= 1")
    return value


Window = Annotated[list[float], AfterValidator(_is_window)]
WHOLE = [0.0, 1.0]


def _share(progress: float, window: list[float]) -> float:
    """Return how much of the window is done, 0..1; 1 from its end on, also when it is empty."""
    first, last = window
    if progress >= last:
        return 1.0
    return 0.0 if progress <= first else (progress - first) / (last - first)


def _between(start: float, stop: float, share: float) -> float:
    """Return start at 0 and stop at 1, both exactly."""
    return start * (1 - share) + stop * share


@SCHEDULES.add
def constant(progress: float, *, value: float) -> float:
    """Stay at one value.

    v(p) = value
    """
    del progress
    return value


@SCHEDULES.add
def linear(progress: float, *, start: float, stop: float, window: Window = WHOLE) -> float:
    """Move in a straight line.

    v(t) = start + (stop - start) * t, with t the share of the window that is done
    """
    return _between(start, stop, _share(progress, window))


@SCHEDULES.add
def cosine(progress: float, *, start: float, stop: float, window: Window = WHOLE) -> float:
    """Move along half a cosine: slowly, fast, slowly.

        v(t) = stop + (start - stop) * (1 + cos(pi t)) / 2

    Reference: Loshchilov and Hutter, 2016, arXiv:1608.03983.
    """
    t = _share(progress, window)
    return _between(start, stop, (1 - math.cos(math.pi * t)) / 2)


@SCHEDULES.add
def cubic(progress: float, *, start: float, stop: float, window: Window = WHOLE) -> float:
    """Move fast at first and ever more slowly: alpha-blending's schedule.

        v(t) = start + (stop - start) * (1 - (1 - t)^3)

    Reference: Liu and Mattina, 2019, arXiv:1903.01061.
    """
    t = _share(progress, window)
    return _between(start, stop, 1 - (1 - t) ** 3)


def with_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """Return `schedule`, raised linearly from 0 over the first `warmup` share of training.

    v(p) = schedule(p) * min(1, p / warmup)
    """
    if not warmup:
        return schedule
    return lambda progress: schedule(progress) * min(1.0, progress / warmup)

"""Times of several things that are run in turn in one process; this opens without torch.

What slows the machine then slows them alike. On one thread, the processor time of that thread is
taken, which other programs do not lengthen; else the time on the clock.
"""

import time
from collections.abc import Callable, Sequence

UNCOUNTED = 3  # the first runs allocate


def times_in_turn(
    runs: Sequence[Callable[[], object]], *, rounds: int, threads: int
) -> list[list[float]]:
    """Return the milliseconds of each run, [runs][rounds].

    Args:
        runs: what is run, in this order in each round.
        rounds: how often each is run, after the first few, which are not counted.
        threads: on how many each of them computes; 0 for all.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + UNCOUNTED):
        for run, taken in zip(runs, times, strict=True):
            started = clock()
            run()
            if turn >= UNCOUNTED:
                taken.append(1000 * (clock() - started))
    return times

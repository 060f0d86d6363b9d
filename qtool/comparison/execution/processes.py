"""Several trials at once, each in a process of its own, on this machine.

All of them share the device. A trial that dies is tried once more when the others have begun; one
that has nothing left to train is given to no process.
"""

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qtool.comparison.execution.board import Board, board
from qtool.comparison.execution.executors import finished_first
from qtool.comparison.execution.slots import Slot, outcome_of
from qtool.comparison.execution.trials import Outcome, Train, Trial

PAUSE = 0.02  # seconds between two looks at the processes


@dataclass(frozen=True)
class Processes:
    """Trains so many trials at once.

    Attributes:
        jobs: how many.
    """

    jobs: int

    def __call__(self, trials: Sequence[Trial], train: Train) -> Iterator[Outcome]:
        """Yield outcomes as they come.

        Raises:
            QtoolError: As a trial's process told of it: every trial would meet it.
        """
        waiting, tries = deque[Trial](), Counter[str]()
        with board(trials) as seen:
            yield from finished_first(trials, train, seen, waiting)
            with _slots(min(self.jobs, len(waiting)), seen) as slots:
                while waiting or any(slot.trial for slot in slots):
                    for slot in slots:
                        if slot.trial is None and waiting:
                            seen.begins(waiting[0])
                            slot.give(waiting.popleft(), train)
                        outcome = _outcome(slot, tries, waiting)
                        if outcome is not None:
                            seen.ends(outcome)
                            yield outcome
                    time.sleep(PAUSE)


def _outcome(slot: Slot, tries: Counter[str], waiting: deque[Trial]) -> Outcome | None:
    """Return what became of a slot's trial; None where it is trained, or will be once more.

    Raises:
        QtoolError: As the trial's process told of it.
    """
    trial = slot.trial
    ended = None if trial is None else slot.ended()
    return None if trial is None or ended is None else outcome_of(trial, ended, tries, waiting)


@contextmanager
def _slots(count: int, seen: Board) -> Generator[list[Slot]]:
    """Lend slots; whatever ends that, all trials write their checkpoints, and all processes end."""
    slots = [Slot(seen.hears) for _ in range(count)]
    try:
        yield slots
    finally:
        for slot in slots:
            slot.stop()
        for slot in slots:
            slot.end()

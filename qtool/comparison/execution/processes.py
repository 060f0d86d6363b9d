"""Several trials at once, each in a process of its own, on this machine.

All of them share the device. A trial that dies is tried once more when the others have begun; one
that has nothing left to train is given to no process.
"""

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qtool.comparison.execution.board import board
from qtool.comparison.execution.executors import finished_first
from qtool.comparison.execution.slots import Slot, end_all, outcome_of, slots_for
from qtool.comparison.execution.trials import Outcome, Train, Trial

PAUSE = 0.02  # seconds between two looks at the processes


@dataclass(frozen=True)
class Processes:
    """Trains so many trials at once.

    Attributes:
        jobs: how many.
        slots: that are lent, to be used before others; they go on when all trials are done.
    """

    jobs: int
    slots: Sequence[Slot] = ()

    def __call__(self, trials: Sequence[Trial], train: Train) -> Iterator[Outcome]:
        """Yield outcomes as they come.

        Raises:
            QtoolError: As a trial's process told of it: every trial would meet it.
        """
        waiting, tries = deque[Trial](), Counter[str]()
        with board(trials) as seen:
            yield from finished_first(trials, train, seen, waiting)
            with self._slots(min(self.jobs, len(waiting))) as slots:
                for slot in slots:
                    slot.heard = seen.hears
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

    @contextmanager
    def _slots(self, count: int) -> Generator[list[Slot]]:
        """Lend so many slots; an error ends those that are lent here, too."""
        lent = list(self.slots[:count])
        with slots_for(count - len(lent)) as own:
            try:
                yield lent + own
            except BaseException:
                end_all(lent)
                raise


def _outcome(slot: Slot, tries: Counter[str], waiting: deque[Trial]) -> Outcome | None:
    """Return what became of a slot's trial; None where it is trained, or will be once more.

    Raises:
        QtoolError: As the trial's process told of it.
    """
    trial = slot.trial
    ended = None if trial is None else slot.ended()
    return None if trial is None or ended is None else outcome_of(trial, ended, tries, waiting)

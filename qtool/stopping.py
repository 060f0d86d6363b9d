"""Being asked to stop by a signal, and what must be done to its end first.

Ctrl-C (SIGINT) raises KeyboardInterrupt at once, wherever qtool is. SIGTERM, from a scheduler, and
SIGHUP, from a terminal that goes away, raise `Stopped`, but not inside a block of `held_back`: then
at its end. So what has to be whole, such as a training step, goes into such a block, and whoever
catches `Stopped` may write down where things stand.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Stopped(KeyboardInterrupt):
    """A signal asked to stop.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Return 143 for SIGTERM, 129 for SIGHUP, as shells name them."""
        return 128 + self.number


class _Asked:
    """Which signal came first, and whether it waits.

    Attributes:
        first: the first signal that came, None before.
        waiting: it is still to be raised, at the end of the outermost block.
        depth: how many blocks of `held_back` there are around what runs now.
    """

    first: int | None = None
    waiting = False
    depth = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """Take a signal: the first one asks, a second Ctrl-C ends the process where it is."""
        if self.first is None:
            self.first = number
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            if self.depth:
                self.waiting = True
            else:
                raise Stopped(number)
        elif signal.SIGINT in (number, self.first):
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
            os._exit(128 + number)


_asked = _Asked()


@contextmanager
def held_back() -> Iterator[None]:
    """Do the block to its end before SIGTERM or SIGHUP stops anything; Ctrl-C still does.

    Raises:
        Stopped: At the end of the outermost such block, if a signal came.
    """
    _asked.depth += 1
    try:
        yield
    finally:
        _asked.depth -= 1
    if _asked.waiting and not _asked.depth:
        _asked.waiting = False
        raise Stopped(_asked.first or signal.SIGTERM)


def waiting() -> int:
    """Return the signal that waits for the end of a block of `held_back`, 0 where none does."""
    return (_asked.first or 0) if _asked.waiting else 0


def interrupted() -> bool:
    """Tell whether Ctrl-C came, whose KeyboardInterrupt others may have made another error of."""
    return _asked.first == signal.SIGINT


@contextmanager
def heeding_signals(*, at_the_end: bool = False) -> Iterator[None]:
    """Heed signals inside as this module says; those that are ignored already stay so.

    A shell ignores SIGINT for what it starts in the background, and nohup SIGHUP.

    Args:
        at_the_end: the process ends with the block, so that one more Ctrl-C, which would come
            while Python takes itself down, ends it at once and silently.

    Raises:
        ValueError: If called outside the main thread, as Python has it.
    """
    global _asked
    _asked, before = _Asked(), {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, _take)
    try:
        yield
    finally:
        if at_the_end and signal.SIGINT in before:
            before[signal.SIGINT] = signal.SIG_DFL
        for number, handler in before.items():
            signal.signal(number, handler)


def _take(number: int, frame: FrameType | None) -> None:
    _asked.take(number, frame)

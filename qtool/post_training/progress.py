"""What methods that take minutes show on standard error: how far they are, and each part done."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qtool.console import STATUS, say
from qtool.reports.improvements import Applied
from qtool.reports.words import time_left

MARKS = 20  # of the bar


class Progress:
    """How far a method is in a network: which layer or block of how many, and the time left."""

    def __init__(self, method: str, parts: int, done: int, what: str) -> None:
        """Begin with `done` of the parts behind; `what` they are: layer or block."""
        self._method, self._parts, self._what = method, parts, what
        self._begun, self._before, self._done = time.monotonic(), done, done

    def within(self, share: float, name: str) -> None:
        """Show how much of the part in progress is done, 0..1."""
        if not STATUS.is_due():
            return
        done = self._done + share
        taken = time.monotonic() - self._begun
        left = taken / max(done - self._before, 1e-6) * (self._parts - done)
        whole = done / self._parts
        STATUS.show(
            [
                f"{self._method}: {self._what} {self._done + 1}/{self._parts}",
                f"{100 * whole:3.0f} %",
                f"{time_left(left)} left",
                name,
                f"[{'#' * round(MARKS * whole):{MARKS}}]",
            ]
        )

    def done(self, rows: Sequence[Applied], seconds: float) -> None:
        """Say what came of a part: of all that was done there, one after the other."""
        self._done += 1
        before, after = rows[0].error_before, rows[-1].error_after
        errors = ""
        if before is not None and after is not None:
            errors = f"  error {100 * before:.3g} % -> {100 * after:.3g} %"
        width = len(str(self._parts))
        place = f"{self._what} {self._done:>{width}}/{self._parts}"
        said = f"  ({rows[-1].note})" if rows[-1].note else ""
        say(f"{self._method}: {place}  {rows[-1].layer}{errors}  {seconds:.1f} s{said}")


@contextmanager
def shown(method: str, parts: int, done: int, what: str) -> Iterator[Progress]:
    """Show how far a method is while inside.

    Args:
        method: its name.
        parts: how many there are.
        done: of them before it began.
        what: a part is.
    """
    try:
        yield Progress(method, parts, done, what)
    finally:
        STATUS.clear()

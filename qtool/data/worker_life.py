"""Worker processes: for how many there is room, and that they end with the process that reads.

Workers that a server process starts are no children of the reader, and hold what keeps the server
alive, as it holds them: where the reader was killed, each would wait for the other for ever. So
each worker watches the reading end of a pipe whose writing end the reader alone holds: the system
closes that with it. Signals to a whole group of processes are the reader's business, too.
"""

import os
import signal
import threading
import weakref
from multiprocessing.connection import Connection, Pipe


class EndsWithReader:
    """What a worker calls when it starts; made in the process that reads from it."""

    def __init__(self) -> None:
        self._watched, self._held = Pipe(duplex=False)
        self._ending: weakref.finalize | None = None

    def end_with(self, stream: object) -> None:
        """End the workers with what is read from them, too, however that is let go.

        Where it is part of a cycle, as by an error that was caught, the collector closes the queues
        by which torch would end them before it asks torch to, which waits 10 s for each in vain.
        """
        if self._ending is None or (alive := self._ending.peek()) is None or alive[0] is not stream:
            self._ending = weakref.finalize(stream, self._held.close)
            self._ending.atexit = False  # torch ends them before that

    def __getstate__(self) -> Connection:
        """Return what goes to a worker: the end that is watched."""
        return self._watched

    def __setstate__(self, state: Connection) -> None:
        """Take it."""
        self._watched = state

    def __call__(self, worker: int) -> None:
        """End this process once the reader is gone; leave signals to the reader."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if (number := getattr(signal, name, None)) is not None:
                signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(self._watched,), daemon=True).start()


def usable_cores() -> int:
    """Count the cores this process may use: the loader warns about more workers than that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with(watched: Connection) -> None:
    """Wait until nobody can write any more, and end the process where it is."""
    try:
        watched.recv_bytes()
    except (EOFError, OSError):
        pass
    finally:
        os._exit(1)

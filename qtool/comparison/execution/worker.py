"""A process that trains trials: `python -m qtool.comparison.execution.worker`, started by `slots`.

It loads what training needs once, and then forks for each trial, so that every trial has a process
of its own, fresh, at no cost; where systems cannot fork safely it trains one trial and ends.
Tasks come in on standard input, and replies go out on standard output, which nothing else may use:
a trial's own output goes to standard error. Where the process that reads them is gone, standard
input ends, and with it whatever runs here, be it that torch is still loading: so this module itself
loads without. SIGTERM is passed on to the trial, which writes a checkpoint before it ends.
"""

import gc
import importlib
import json
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from qtool.stopping import Stopped, heeding_signals

if TYPE_CHECKING:
    from qtool.comparison.execution.tasks import Task
    from qtool.comparison.execution.trials import Trial

FORKS = sys.platform == "linux"  # elsewhere system libraries may hold locks that a child never gets
LOADED = ("qtool.comparison.execution.tasks", "torch._dynamo")  # the latter whatever the optimizer
LOOK = 200  # milliseconds between two looks at whether loading is done
SAID_ALL = "\0"  # a line on standard error once a trial has ended
GONE = 1  # exit code of a process whose reader is gone


class _Serving:
    """What there is to know when a signal comes.

    Attributes:
        trial: process of the trial that is trained, 0 where none is.
        stopping: a signal has asked to stop.
    """

    trial = 0
    stopping = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Start no trial any more, and ask the one that runs to stop."""
        self.stopping = True
        if self.trial:
            os.kill(self.trial, number)


def main() -> None:
    """Train what comes in on standard input until that ends."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anything else prints would be taken for replies
    source = os.fdopen(os.dup(0), "rb")
    if not FORKS:
        task = _received(source)
        if task is not None:
            sys.exit(_train(task, replies))
        return
    with _ending_with_reader():
        for name in LOADED:
            importlib.import_module(name)
    serving = _Serving()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, serving.stop)
    while not serving.stopping and (task := _received(source)) is not None:
        _load_late(task.trial)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serving.trial = 0 if serving.stopping else os.fork()
        if not serving.trial and not serving.stopping:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _leave(_train(task, replies))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if serving.trial:
            _, status = os.waitpid(serving.trial, 0)
            serving.trial = 0
            os.write(2, f"\n{SAID_ALL}\n".encode())
            _reply(replies, {"ended": os.waitstatus_to_exitcode(status)})


@contextmanager
def _ending_with_reader() -> Generator[None]:
    """End the process where nobody can send anything any more, while inside."""
    done, poll = threading.Event(), select.poll()
    poll.register(0, 0)  # asked for nothing, it tells only that the other end is closed

    def watch() -> None:
        while not done.is_set():
            if poll.poll(LOOK):
                os._exit(0)  # nothing was begun

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()  # a process that forks should have one thread


def _load_late(trial: "Trial") -> None:
    """Load here, once, what training loads late, and what takes each trial a second."""
    if trial.recipe.data.name == "digits":
        importlib.import_module("sklearn.datasets")
    gc.collect()
    gc.freeze()  # a collection in the trial's process would copy all of this


def _train(task: "Task", replies: BinaryIO) -> int:
    """Train a trial in this process, reply how it ended, and return the exit code."""
    threading.Thread(target=_end_with_reader, daemon=True).start()
    try:
        with heeding_signals():
            if FORKS:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            reply = task.done()
    except Stopped as stopped:
        return stopped.exit_code
    _reply(replies, reply)
    return 0


def _leave(code: int) -> NoReturn:
    """End this process; one that is done at once, as Python would tear down all that is loaded."""
    if code == 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _reply(replies: BinaryIO, said: Mapping[str, object]) -> None:
    """Write one line, whole."""
    left = memoryview(json.dumps(said).encode() + b"\n")
    while left:
        left = left[replies.write(left) :]


def _received(source: BinaryIO) -> "Task | None":
    """Return the next task; None where there is none any more."""
    try:
        return pickle.load(source)
    except (EOFError, pickle.UnpicklingError):  # whoever wrote it was killed
        return None


def _end_with_reader() -> None:
    """Wait until nobody can send anything any more, and end the process where it is."""
    try:
        while os.read(0, 1):
            pass
    finally:
        os._exit(GONE)


if __name__ == "__main__":
    main()

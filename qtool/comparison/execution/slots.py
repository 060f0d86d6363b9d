"""A place for one trial at a time in a process of its own: `execution.worker`, from outside.

A worker leads a group of processes of its own, so that Ctrl-C in a terminal does not reach it: the
process that started it asks it to stop, and waits until the trial has written its checkpoint.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from qtool.comparison.execution.executors import TRIES, say_died
from qtool.comparison.execution.tasks import Ended, Task
from qtool.comparison.execution.trials import Outcome, Train, Trial, failed_summary
from qtool.comparison.execution.worker import SAID_ALL

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LAST_WORDS = 2  # seconds for what a trial has said to be read
PATIENCE = 300  # seconds for a checkpoint, once a trial is asked to stop
Heard = Callable[[Trial, str], None]


def outcome_of(
    trial: Trial, ended: Ended, tries: Counter[str], waiting: deque[Trial]
) -> Outcome | None:
    """Return what became of a trial whose process has ended; None where it is tried once more.

    Raises:
        QtoolError: As the trial's process told of it.
    """
    if ended.error is not None:
        raise ended.error
    if ended.summary is not None:
        return Outcome(trial, ended.summary)
    tries[str(trial)] += 1
    why = say_died(trial, ended.why, tries[str(trial)])
    if tries[str(trial)] < TRIES:
        waiting.append(trial)
        return None
    return Outcome(trial, failed_summary(trial, why))


def _unheard(trial: Trial, line: str) -> None:
    """Take what a trial says where nobody listens."""


class Slot:
    """A worker process, started when it is needed, or before.

    Attributes:
        trial: that is trained.
        heard: called, in a thread, with every line that a trial says.
    """

    def __init__(self, heard: Heard = _unheard) -> None:
        self.trial: Trial | None = None
        self.heard = heard
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[dict[str, object] | None] = queue.Queue()
        self._reply: dict[str, object] = {}
        self._speaker: Trial | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._said_all = threading.Event()

    @property
    def process_id(self) -> int | None:
        """Return which process it is; None where none is running."""
        return None if self._process is None else self._process.pid

    def start(self, threads: int | None) -> None:
        """Start the process, which loads what trials need until it is given one.

        Args:
            threads: of each trial.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._started(threads)

    def give(self, trial: Trial, train: Train) -> None:
        """Have a trial trained."""
        task = Task.of(trial, train).sent()
        self.trial = self._speaker = trial
        self._reply = {}
        self._said.clear()
        self._said_all.clear()
        self.start(trial.threads)
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, which is seen when it is asked
            self._process.stdin.write(task)
            self._process.stdin.flush()

    def ended(self) -> Ended | None:
        """Return how the trial ended; None while it is trained."""
        assert self._process is not None
        code: object = None
        while code is None:
            try:
                reply = self._replies.get_nowait()
            except queue.Empty:
                return None
            if reply is None:  # there will be no other
                code = self._process.wait()
            elif "ended" in reply:
                code = reply["ended"]
            else:
                self._reply = reply
        self.trial = None
        self._said_all.wait(LAST_WORDS)
        if self._process.poll() is not None:
            self.end()
        return self._how(int(str(code)))

    def _how(self, code: int) -> Ended:
        if self._reply:
            return Ended.of(self._reply)
        last = f" after: {self._said[-1]}" if self._said and code > 0 else ""
        return Ended(why=f"{_in_words(code)}{last}")

    def stop(self) -> None:
        """Ask the trial to stop once it has written its checkpoint."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait until the process has ended; one that does not is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        if self.trial is not None and process.poll() is None:
            with suppress(queue.Empty):
                while (reply := self._replies.get(timeout=PATIENCE)) and "ended" not in reply:
                    pass
        assert process.stdin is not None
        if self._speaker is None:  # it has not begun anything, and may still be loading
            process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()  # a worker that waits for a task ends
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.trial, self._replies = None, queue.Queue()

    def _started(self, threads: int | None) -> subprocess.Popen[bytes]:
        """Start a worker that finds the modules that this process finds."""
        found = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        environment = {**os.environ, "PYTHONPATH": found}
        if threads is not None:  # before torch is loaded, so that no more are ever started
            environment |= dict.fromkeys(THREADS, str(threads))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qtool.comparison.execution.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        replies = self._replies = queue.Queue()
        for read, source in ((self._read, process.stdout), (self._hear, process.stderr)):
            threading.Thread(target=read, args=(source, replies), daemon=True).start()
        return process

    def _read(self, source: IO[bytes], replies: "queue.Queue[dict[str, object] | None]") -> None:
        """Put replies in the queue, and None at their end."""
        with source:
            for line in source:
                with suppress(ValueError):  # cut short, by a kill
                    replies.put(json.loads(line))
        replies.put(None)

    def _hear(self, source: IO[bytes], _: object) -> None:
        """Pass on what a trial says."""
        with source:
            for line in source:
                text = line.decode(errors="replace").rstrip()
                if text == SAID_ALL:
                    self._said_all.set()
                elif text and self._speaker is not None:
                    self._said.append(text)
                    self.heard(self._speaker, text)
        self._said_all.set()


@contextmanager
def slots_for(count: int) -> Generator[list[Slot]]:
    """Lend slots; whatever ends that, all trials write their checkpoints, and all processes end."""
    slots = [Slot() for _ in range(count)]
    try:
        yield slots
    finally:
        end_all(slots)


def end_all(slots: Sequence[Slot]) -> None:
    """Ask all trials to stop, and wait until they and their processes have ended."""
    for slot in slots:
        slot.stop()
    for slot in slots:
        slot.end()


def _in_words(code: int) -> str:
    """Say how a process without a word ended."""
    if code >= 0:
        return f"its process ended with {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = "; the system may have been out of memory" if name == "SIGKILL" else ""
    return f"its process was killed ({name}){hint}"

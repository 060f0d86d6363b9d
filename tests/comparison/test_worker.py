"""The process that trains trials, in a fork of this one: what it replies, and when it ends."""

import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qtool.comparison.execution import worker
from qtool.comparison.execution.tasks import Task
from qtool.comparison.execution.trials import Trial
from tests.comparison.fake_trainings import Fake, processes_of, summary_of, trials_of, tries_of
from tests.runs.left import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
PATIENCE = 30  # seconds


@dataclass
class Worker:
    """A worker, and the ends of its three pipes."""

    process: int
    to: int
    out: int
    err: int
    read: dict[int, bytes] = field(default_factory=dict[int, bytes])

    @classmethod
    def started(cls, *, forks: bool = True, loads: float = 0) -> "Worker":
        """Start one; `forks`: it has a process for each trial; `loads`: for so many seconds."""
        (source, to), (out, said), (err, told) = os.pipe(), os.pipe(), os.pipe()
        process = os.fork()
        if process:
            for end in (source, said, told):
                os.close(end)
            return cls(process, to, out, err)
        code = 70
        try:
            for end, number in ((source, 0), (said, 1), (told, 2)):
                os.dup2(end, number)
            for end in (source, to, out, said, err, told):
                os.close(end)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            worker.FORKS = forks
            importlib.import_module = lambda name, *_: (
                os.write(2, f"loads {name}\n".encode()),
                time.sleep(loads),
            )
            worker.main()
            code = 0
        except SystemExit as ended:
            code = int(str(ended.code or 0))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def take(self, trial: Trial) -> None:
        os.write(self.to, Task.of(trial, Fake()).sent())

    def hang_up(self) -> None:
        """Send nothing any more."""
        if self.to >= 0:
            os.close(self.to)
        self.to = -1

    def replies(self, count: int | None = None) -> list[dict[str, object]]:
        """Return all replies so far, as soon as there are so many; None waits for the last."""
        return [json.loads(line) for line in self._lines(self.out, count)]

    def words(self, count: int | None = None) -> list[str]:
        """Return all that it and its trials have said, as `replies` does."""
        return [line.decode() for line in self._lines(self.err, count)]

    def _lines(self, end: int, count: int | None) -> list[bytes]:
        data = self.read.get(end, b"")
        while count is None or data.count(b"\n") < count:
            assert select.select([end], [], [], PATIENCE)[0], data
            part = os.read(end, 65536)
            if not part:
                break
            data += part
        self.read[end] = data
        return data.splitlines()

    def code(self) -> int:
        """Return the exit code."""
        _, status = os.waitpid(self.process, 0)
        self.process = 0
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        self.hang_up()
        for end in (self.out, self.err):
            os.close(end)
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)


@pytest.fixture
def forking() -> Iterator[Worker]:
    made = Worker.started()
    yield made
    made.end()


@pytest.fixture
def plain() -> Iterator[Worker]:
    made = Worker.started(forks=False)
    yield made
    made.end()


def summary(trial: Trial) -> dict[str, object]:
    return {"summary": summary_of(trial).to_json()}


def test_each_trial_has_a_process_and_replies_stand_alone(forking: Worker, tmp_path: Path) -> None:
    trials = trials_of(tmp_path, "speaks", "a")
    forking.take(trials[0])
    forking.replies(2)
    forking.take(trials[1])
    replies = forking.replies(4)
    forking.hang_up()

    assert replies == [summary(trials[0]), {"ended": 0}, summary(trials[1]), {"ended": 0}]
    words = forking.words()
    assert words.count("loads sklearn.datasets") == 2  # by the worker, once for all that it forks
    assert {"a word on standard output", "a word on standard error"} <= set(words)
    assert words.count(worker.SAID_ALL) == 2
    own = [*processes_of(trials[0]), *processes_of(trials[1]), forking.process]
    assert len(set(own)) == 3
    assert forking.code() == 0


def test_a_trial_that_is_killed_leaves_a_worker_that_goes_on(
    forking: Worker, tmp_path: Path
) -> None:
    trials = trials_of(tmp_path, "killed", "refused")
    forking.take(trials[0])
    forking.replies(1)
    forking.take(trials[1])
    assert forking.replies(3) == [
        {"ended": -signal.SIGKILL},
        {"error": "InputError", "message": "no such data"},
        {"ended": 0},
    ]


def test_a_worker_that_is_asked_to_stop_has_the_trial_write_its_checkpoint(
    forking: Worker, tmp_path: Path
) -> None:
    (trial,) = trials_of(tmp_path, "waits")
    forking.take(trial)
    wait_until(lambda: (trial.folder.path / "waits").exists(), PATIENCE)
    os.kill(forking.process, signal.SIGTERM)

    assert forking.replies() == [{"ended": 143}]  # and it waits for no other task
    assert forking.code() == 0
    assert (trial.folder.path / "checkpoint").exists()


def test_a_trial_ends_where_it_is_when_nobody_is_left_to_hear_of_it(
    forking: Worker, tmp_path: Path
) -> None:
    (trial,) = trials_of(tmp_path, "waits")
    forking.take(trial)
    wait_until(lambda: (trial.folder.path / "waits").exists(), PATIENCE)
    forking.hang_up()

    assert forking.replies() == [{"ended": worker.GONE}]
    assert forking.code() == 0
    assert not (trial.folder.path / "checkpoint").exists()


def test_a_worker_that_loads_ends_when_nobody_is_left_to_hear_of_it(tmp_path: Path) -> None:
    """Whoever started it was killed before it could be told to end, with a task on its way."""
    begun, loading = time.monotonic(), Worker.started(loads=2 * PATIENCE)
    try:
        loading.words(1)
        for trial in trials_of(tmp_path, "a"):
            loading.take(trial)
        loading.hang_up()
        assert loading.code() == 0
        assert time.monotonic() - begun < PATIENCE
        assert loading.replies() == []
    finally:
        loading.end()


def test_a_task_that_is_cut_short_is_none(forking: Worker, tmp_path: Path) -> None:
    (trial,) = trials_of(tmp_path, "a")
    os.write(forking.to, Task.of(trial, Fake()).sent()[:-9])
    forking.hang_up()
    assert forking.replies() == []
    assert forking.code() == 0
    assert tries_of(trial) == 0


def test_where_nothing_may_fork_a_worker_trains_one_trial_and_ends(
    plain: Worker, tmp_path: Path
) -> None:
    (trial,), process = trials_of(tmp_path, "speaks"), plain.process
    plain.take(trial)
    assert plain.replies() == [summary(trial)]  # and it waits for no other task
    assert plain.code() == 0
    assert processes_of(trial) == [process]
    assert "a word on standard output" in plain.words()


def test_where_nothing_may_fork_a_signal_is_the_exit_code(plain: Worker, tmp_path: Path) -> None:
    (trial,) = trials_of(tmp_path, "waits")
    plain.take(trial)
    wait_until(lambda: (trial.folder.path / "waits").exists(), PATIENCE)
    os.kill(plain.process, signal.SIGTERM)
    assert plain.code() == 143
    assert plain.replies() == []
    assert (trial.folder.path / "checkpoint").exists()


def test_where_nothing_may_fork_a_worker_without_a_task_ends(plain: Worker) -> None:
    plain.hang_up()
    assert plain.code() == 0

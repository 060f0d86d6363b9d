"""A worker's slot, from outside: what is made of all that a process may do."""

import json
import os
import queue
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from qtool.comparison.execution import slots
from qtool.comparison.execution.slots import THREADS, Slot, outcome_of
from qtool.comparison.execution.tasks import Ended, Task
from qtool.comparison.execution.trials import Trial
from qtool.errors import InputError
from tests.comparison.fake_trainings import Fake, summary_of, trials_of


class Broken(BytesIO):
    """The standard input of a process that is gone."""

    def write(self, data: object) -> int:
        raise BrokenPipeError


class Process:
    """A double of a process that has said all it says before it is asked.

    Args:
        said: lines of standard output, or whatever stands there.
        words: on standard error.
        code: that it ends with.
        runs: it is still there.
        ends: it does when it is waited for.
    """

    def __init__(
        self,
        *said: object,
        words: str = "",
        code: int = 0,
        runs: bool = False,
        ends: bool = True,
    ) -> None:
        lines = [each if isinstance(each, str) else json.dumps(each) for each in said]
        self.stdin: BytesIO = BytesIO()
        self.stdout = BytesIO("\n".join(lines).encode())
        self.stderr = BytesIO(words.encode())
        self.code, self.runs, self.ends = code, runs, ends
        self.done: list[str] = []

    def poll(self) -> int | None:
        return None if self.runs else self.code

    def wait(self, timeout: float | None = None) -> int:
        if not self.ends and "kill" not in self.done:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return self.code

    def terminate(self) -> None:
        self.done.append("terminate")

    def kill(self) -> None:
        self.done.append("kill")


Given = Callable[..., tuple[Slot, Ended]]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return trials_of(tmp_path, "a", threads=3)[0]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, object]]]:
    """Return how processes were started."""
    found: list[tuple[list[str], dict[str, object]]] = []
    monkeypatch.setattr(slots, "LAST_WORDS", 0.2)
    return found


@pytest.fixture
def given(
    trial: Trial,
    started: list[tuple[list[str], dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> Given:
    """Return a slot that has given a trial to processes, and how the trial ended."""

    def of(*processes: Process) -> tuple[Slot, Ended]:
        coming = iter(processes)

        def popen(command: list[str], **options: object) -> Process:
            started.append((command, options))
            return next(coming)

        monkeypatch.setattr(subprocess, "Popen", popen)
        slot = Slot(lambda *_: None)
        slot.give(trial, Fake())
        return slot, until_ended(slot)

    return of


def until_ended(slot: Slot) -> Ended:
    for _ in range(1000):
        if (ended := slot.ended()) is not None:
            return ended
        time.sleep(0.005)
    raise AssertionError("it has not ended")


def test_a_reply_is_how_the_trial_ended_and_the_slot_is_free(given: Given, trial: Trial) -> None:
    said = {"summary": summary_of(trial).to_json()}
    slot, ended = given(Process(said, {"ended": 0}))
    assert ended == Ended(summary=summary_of(trial))
    assert slot.trial is None


def test_the_process_is_sent_the_task_and_finds_modules_and_threads(
    given: Given,
    trial: Trial,
    started: list[tuple[list[str], dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", ["", "/there"])
    process = Process({"ended": 0}, runs=True)
    given(process)
    (command, options) = started[0]
    environment = options["env"]
    assert isinstance(environment, dict)

    assert process.stdin.getvalue() == Task.of(trial, Fake()).sent()
    assert command == [sys.executable, "-P", "-m", "qtool.comparison.execution.worker"]
    assert {environment[name] for name in THREADS} == {"3"}
    assert environment["PYTHONPATH"] == os.pathsep.join([str(Path.cwd()), "/there"])
    assert options["process_group"] == 0


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (3, "its process ended with 3 after: no module named torch"),
        (-15, "its process was killed (SIGTERM)"),
        (-9, "its process was killed (SIGKILL); the system may have been out of memory"),
        (-200, "its process was killed (200)"),
    ],
)
def test_a_process_that_ends_without_a_word_is_told_by_its_code(
    code: int, why: str, given: Given
) -> None:
    """Whether the worker says it of a trial's process, or has ended itself."""
    words = "loading\nno module named torch\n"
    assert given(Process({"ended": code}, words=words))[1] == Ended(why=why)
    assert given(Process('{"summary": {"sta', words=words, code=code))[1] == Ended(why=why)


def test_a_process_that_is_gone_gives_way_to_a_new_one(
    given: Given, trial: Trial, started: list[tuple[list[str], dict[str, object]]]
) -> None:
    gone = Process(code=1)
    gone.stdin = Broken()
    slot, ended = given(gone, Process({"ended": 0}, runs=True))
    assert ended == Ended(why="its process ended with 1")
    slot.give(trial, Fake())
    until_ended(slot)
    assert len(started) == 2
    slot.give(trial, Fake())  # the second one is there, and takes more
    assert len(started) == 2


def test_only_a_process_that_runs_is_asked_to_stop(given: Given) -> None:
    for runs, done in ((True, ["terminate"]), (False, [])):
        process = Process({"ended": 0}, runs=runs)
        slot, _ = given(process)
        slot.stop()
        assert process.done == done


def test_a_process_that_does_not_end_is_killed(given: Given) -> None:
    lasting, orderly = (
        Process({"ended": 0}, runs=True, ends=False),
        Process({"ended": 0}, runs=True),
    )
    for process, done in ((lasting, ["kill"]), (orderly, [])):
        slot, _ = given(process)
        slot.end()
        slot.end()  # there is nothing left to end
        assert process.done == done
        assert process.stdin.closed


def test_a_trial_that_runs_may_write_its_checkpoint_before_the_end(
    given: Given, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process({"ended": 0}, runs=True)
    slot, _ = given(process)
    slot.give(trial, Fake())
    replies: queue.Queue[dict[str, object] | None] = queue.Queue()
    replies.put({"summary": {}})
    replies.put({"ended": 143})
    monkeypatch.setattr(slot, "_replies", replies)
    slot.end()
    assert replies.empty()
    assert slot.trial is None


def test_an_error_that_every_trial_would_meet_is_raised(trial: Trial) -> None:
    tries, waiting = Counter[str](), deque[Trial]()
    with pytest.raises(InputError, match=r"^no such data$"):
        outcome_of(trial, Ended(error=InputError("no such data")), tries, waiting)
    assert not waiting
    assert outcome_of(trial, Ended(why="killed"), tries, waiting) is None
    assert list(waiting) == [trial]
    last = outcome_of(trial, Ended(why="killed"), tries, waiting)
    assert last is not None
    assert last.summary.error == "died 2 times, the last time: killed"
    assert list(waiting) == [trial]

"""Executors: trials one by one, and several at once in processes of their own."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qtool.comparison.execution.executors import one_by_one, run_trials
from qtool.comparison.execution.processes import Processes
from qtool.comparison.execution.slots import THREADS, slots_for
from qtool.errors import InputError
from tests.comparison.executor_cases import ExecutorTestCase
from tests.comparison.fake_trainings import Fake, processes_of, trials_of, tries_of
from tests.runs.left import PATIENCE, end, of_session, wait_until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
PARENT = """
import sys
import typer
from pathlib import Path
from qtool.cli.options import interruptible
from qtool.comparison.execution.executors import run_trials
from qtool.comparison.execution.processes import Processes
from qtool.stopping import heeding_signals
from tests.comparison.fake_trainings import Fake, trials_of

@interruptible
def compare():
    run_trials(trials_of(Path(sys.argv[1]), "waits", seeds=(0, 1, 2)), Fake(), Processes(2))

try:
    with heeding_signals():
        compare()
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


class TestOneByOne(ExecutorTestCase):
    def executor(self):
        return one_by_one

    def test_all_trials_are_trained_in_this_process(self, tmp_path):
        assert set(self.processes(trials_of(tmp_path, "a", "b"))) == {os.getpid()}


def test_processes_take_what_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cases below in one, for they load torch in each process."""
    trials = trials_of(tmp_path, "killed", "speaks", "diverges", "large")
    found = run_trials(trials, Fake(), Processes(1))
    said = capsys.readouterr()
    tried = [process for trial in trials for process in processes_of(trial)]

    assert [done.finished for (done,) in found.values()] == [False, True, False, True]
    assert [tries_of(trial) for trial in trials] == [2, 1, 1, 1]
    assert len({*tried, os.getpid()}) == 6
    assert "was killed (SIGKILL)" in found["killed"][0].summary.error
    assert said.out == ""
    assert "speaks, seed 0: a word on standard output" in said.err.splitlines()
    assert "speaks, seed 0: a word on standard error" in said.err.splitlines()


def test_slots_that_are_lent_train_one_comparison_after_the_other(tmp_path: Path) -> None:
    """Without loading torch again; an error ends them with what they train."""
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
    with slots_for(1) as slots:
        slots[0].start(1)
        executor = Processes(1, slots)
        first = run_trials(trials_of(tmp_path / "one", "a", threads=1), Fake(), executor)
        worker = slots[0].process_id
        again = run_trials(trials_of(tmp_path / "two", "b", threads=1), Fake(), executor)
        assert first["a"][0].finished
        assert again["b"][0].finished
        assert worker is not None
        assert slots[0].process_id == worker
        with pytest.raises(InputError, match="no such data"):
            run_trials(trials_of(tmp_path / "three", "refused", threads=1), Fake(), executor)
        assert slots[0].process_id is None


def test_processes_that_were_given_nothing_end_at_once() -> None:
    before = os.times().children_user
    with slots_for(2) as slots:
        for slot in slots:
            slot.start(1)
    assert os.times().children_user - before < 1  # seconds on a core; torch alone takes more
    assert [slot.process_id for slot in slots] == [None, None]


@pytest.mark.slow
class TestProcesses(ExecutorTestCase):
    def executor(self):
        return Processes(2)

    def test_each_trial_has_a_process_of_its_own(self, tmp_path):
        found = self.processes(trials_of(tmp_path, "a", "b", seeds=(0, 1)))
        assert len({*found, os.getpid()}) == 5

    def test_an_estimator_of_the_users_is_loaded_again_unless_it_has_changed(self, tmp_path):
        file = tmp_path / "mine.py"
        file.write_text("def passes(grad, u, low, high):\n    return grad\n")
        trials = trials_of(tmp_path, "a", estimator="mine.py:passes")
        assert self.run(trials)["a"][0].finished
        file.write_text("def passes(grad, u, low, high):\n    return 2 * grad\n")
        with pytest.raises(InputError, match=r"mine\.py: has changed since the comparison began"):
            self.run(trials)

    def test_threads_are_set_before_torch_is_loaded(self, tmp_path):
        trials = trials_of(tmp_path, "waits", threads=3)
        seen: dict[str, str] = {}
        stopper = threading.Thread(target=_environment_when_it_waits, args=(trials[0], seen))
        stopper.start()
        self.run(trials)
        stopper.join()

        assert {seen[name] for name in THREADS} == {"3"}


def _environment_when_it_waits(trial, seen) -> None:
    """Read the environment of the process that trains a trial, and kill it, twice."""
    for number in (1, 2):
        wait_until(lambda number=number: tries_of(trial) == number, 60)
        wait_until(lambda: (trial.folder.path / "waits").exists(), 60)
        process = processes_of(trial)[-1]
        lines = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
        seen.update(line.partition("=")[::2] for line in lines if "=" in line)
        os.kill(process, signal.SIGKILL)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path):
    """After a checkpoint, where there is time for one."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    trials = trials_of(tmp_path, "waits", seeds=(0, 1, 2))
    folders = [trial.folder.path for trial in trials]
    try:
        wait_until(lambda: all((place / "waits").exists() for place in folders[:2]), 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        wait_until(lambda: not of_session(process.pid), PATIENCE)
        assert of_session(process.pid) == set()
    finally:
        end(process)
    orderly = number != signal.SIGKILL
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert [(place / "checkpoint").exists() for place in folders] == [orderly, orderly, False]
    assert [tries_of(trial) for trial in trials] == [1, 1, 0]
    assert process.returncode == codes[number], said.decode()
    assert b"Traceback" not in said

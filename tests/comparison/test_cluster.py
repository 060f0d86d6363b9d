"""Trials on a local Ray cluster."""

import signal
import subprocess
import sys

import pytest

from qtool.comparison.execution.cluster import Cluster
from qtool.comparison.execution.executors import run_trials
from qtool.errors import InputError
from tests.comparison.executor_cases import ExecutorTestCase
from tests.comparison.fake_trainings import Fake, trials_of, tries_of
from tests.runs.left import PATIENCE, end, of_session, wait_until


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'Ray is not installed; pip install "qtool\[cluster\]"'):
        run_trials(trials_of(tmp_path, "a"), Fake(), Cluster("local", tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
class TestCluster(ExecutorTestCase):
    @pytest.fixture(autouse=True)
    def here(self, tmp_path):
        pytest.importorskip("ray")
        self.folder = tmp_path

    def executor(self):
        return Cluster("local", self.folder, jobs=2)

    def test_a_trial_whose_worker_is_killed_is_sent_once_more(self, tmp_path):
        trials = trials_of(tmp_path, "killed", "killed once", "a")
        found = self.run(trials)

        assert [tries_of(trial) for trial in trials] == [2, 2, 1]
        assert "its worker died" in found["killed"][0].summary.error
        assert [found[arm][0].finished for arm in ("killed once", "a")] == [True, True]

    def test_a_folder_that_machines_do_not_share_is_refused(self, tmp_path):
        self.folder = tmp_path / "elsewhere"
        with pytest.raises(InputError, match="choose a folder that all machines share"):
            self.run(trials_of(tmp_path, "a"))

    def test_a_cluster_that_is_not_there_is_refused(self, tmp_path):
        nowhere = Cluster("127.0.0.1:1", tmp_path)
        with pytest.raises(InputError, match=r"--cluster 127\.0\.0\.1:1: no such cluster"):
            run_trials(trials_of(tmp_path, "a"), Fake(), nowhere)


PARENT = """
import sys
import typer
from pathlib import Path
from qtool.cli.options import interruptible
from qtool.comparison.execution.cluster import Cluster
from qtool.comparison.execution.executors import run_trials
from qtool.stopping import heeding_signals
from tests.comparison.fake_trainings import Fake, trials_of

@interruptible
def compare():
    place = Path(sys.argv[1])
    run_trials(trials_of(place, "waits", seeds=(0, 1, 2)), Fake(), Cluster("local", place, 2))

try:
    with heeding_signals():
        compare()
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_cluster_that_is_asked_to_stop_leaves_checkpoints_and_no_process(number, code, tmp_path):
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    folders = [trial.folder.path for trial in trials_of(tmp_path, "waits", seeds=(0, 1, 2))]
    try:
        wait_until(lambda: all((place / "waits").exists() for place in folders[:2]), 90)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        wait_until(lambda: not of_session(process.pid), PATIENCE)
        assert of_session(process.pid) == set()
    finally:
        end(process)

    assert [(place / "checkpoint").exists() for place in folders] == [True, True, False]
    assert process.returncode == code, said.decode()

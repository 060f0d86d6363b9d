"""Trials on a local Ray cluster."""

import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qtool.comparison.execution.cluster import HEEDED, Cluster
from qtool.comparison.execution.executors import run_trials
from qtool.comparison.execution.trials import TrainTrial
from qtool.errors import InputError
from qtool.stopping import Stopped, heeding_signals
from tests.comparison.executor_cases import ExecutorTestCase
from tests.comparison.fake_trainings import Fake, trials_of, tries_of
from tests.comparison.ray_double import Ray
from tests.runs.left import PATIENCE, end, of_session, wait_until


@dataclass(frozen=True)
class Cancelled(Fake):
    """A training that is cancelled by a signal, as Ray cancels one, and writes a checkpoint."""

    number: signal.Signals = signal.SIGINT

    def __call__(self, trial):
        summary = super().__call__(trial)
        try:
            signal.raise_signal(self.number)
        except Stopped:
            (trial.folder.path / "checkpoint").touch()
            raise
        return summary


def is_killed(task, *_):
    """Tell whether a task is of a trial whose worker is to die."""
    return pickle.loads(task).trial.arm == "killed"


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'Ray is not installed; pip install "qtool\[cluster\]"'):
        run_trials(trials_of(tmp_path, "a"), Fake(), Cluster("local", tmp_path))


class TestClusterOnADouble(ExecutorTestCase):
    """What every executor has to do, without Ray: `TestCluster` does it with Ray itself."""

    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        self.ray, self.folder = Ray(dies=is_killed), tmp_path
        monkeypatch.setitem(sys.modules, "ray", self.ray)
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)

    def executor(self):
        return Cluster("local", self.folder, jobs=2)

    def test_a_trial_whose_worker_is_killed_is_sent_once_more(self, tmp_path):
        trials = trials_of(tmp_path, "killed", "a")
        found = self.run(trials)

        assert [tries_of(trial) for trial in trials] == [0, 1]
        said = "died 2 times, the last time: its worker died: its node was lost"
        assert found["killed"][0].summary.error == said
        assert found["a"][0].finished
        assert not self.ray.open

    def test_as_many_are_sent_at_once_as_jobs_and_processors_allow(self, tmp_path):
        trials = trials_of(tmp_path, "a", seeds=range(5), threads=2)
        for jobs, processors, most in ((2, 9, 2), (None, 9, 4), (None, 1, 1), (8, 4, 2)):
            self.ray.most, self.ray.processors = 0, processors
            run_trials(trials, Fake(), Cluster("local", tmp_path, jobs))
            assert self.ray.most == most
        assert self.ray.asked == {"num_cpus": 2, "num_gpus": 0, "max_retries": 0}

    def test_a_trial_on_cuda_asks_for_a_gpu_and_one_on_a_cpu_does_not(self, tmp_path):
        self.ray.dies = lambda *given: True
        for device, gpus in (("cuda", 1), ("cpu", 0)):
            run_trials(trials_of(tmp_path, "a"), TrainTrial(torch.device(device)), self.executor())
            assert self.ray.asked["num_gpus"] == gpus

    def test_a_local_cluster_has_the_processors_that_jobs_take_and_this_process_s_modules(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(sys, "path", ["", "/there"])
        run_trials(trials_of(tmp_path, "a", threads=3), Fake(), self.executor())
        address, options = self.ray.begun

        assert (address, options["num_cpus"]) == ("local", 6)
        found = options["runtime_env"]["env_vars"]["PYTHONPATH"]
        assert found == os.pathsep.join([str(Path.cwd()), "/there"])
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert options["include_dashboard"] is False

    def test_a_cluster_elsewhere_is_asked_at_its_address_alone(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            run_trials(trials_of(tmp_path, "a"), Fake(), Cluster(address, tmp_path))
        where, options = self.ray.begun

        assert where == address
        assert "num_cpus" not in options
        assert "RAY_USAGE_STATS_ENABLED" not in os.environ

    def test_no_cluster_is_told_by_its_address(self, tmp_path, monkeypatch):
        trials = trials_of(tmp_path, "a")
        with pytest.raises(InputError, match=r"--cluster 127\.0\.0\.1:1: no such cluster: "):
            run_trials(trials, Fake(), Cluster("127.0.0.1:1", tmp_path))

        def fails(address, **options):
            raise ConnectionError("nobody answers\nand more")

        monkeypatch.setattr(self.ray, "init", fails)
        with pytest.raises(InputError, match=r"^--cluster auto: no such cluster: nobody answers$"):
            run_trials(trials, Fake(), Cluster("auto", tmp_path))
        assert tries_of(trials[0]) == 0

    def test_signals_are_heeded_as_before_once_ray_has_put_its_own_in_their_place(self, tmp_path):
        seen = []

        def after(outcomes):
            seen.extend(signal.getsignal(number) for number in HEEDED)

        with heeding_signals():
            before = [signal.getsignal(number) for number in HEEDED]
            run_trials(trials_of(tmp_path, "a"), Fake(), self.executor(), after)
        assert seen == before
        assert signal.SIG_DFL not in before

    def test_trials_that_run_when_it_is_stopped_are_cancelled_and_waited_for(self, tmp_path):
        trials = trials_of(tmp_path, "a", "b", "c", "d")

        def stop(outcomes):
            raise Stopped(signal.SIGTERM)

        with pytest.raises(Stopped):
            run_trials(trials, Fake(), self.executor(), stop)
        assert len(self.ray.cancelled) == 1  # one is done, one runs, two are not sent
        assert self.ray.waiting == {}
        assert not self.ray.open
        assert [tries_of(trial) for trial in trials] == [1, 0, 0, 0]

    def test_a_folder_that_machines_do_not_share_is_refused(self, tmp_path):
        self.folder = tmp_path / "elsewhere"
        with pytest.raises(InputError, match="choose a folder that all machines share"):
            self.run(trials_of(tmp_path, "a"))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_trial_that_is_cancelled_is_asked_to_stop_and_tried_once_more(self, number, tmp_path):
        """Ray's SIGINT too lets it write a checkpoint, which a KeyboardInterrupt would not."""
        before = signal.getsignal(signal.SIGINT)
        trials = trials_of(tmp_path, "a")
        found = self.run(trials, Cancelled(number=number))

        assert tries_of(trials[0]) == 2
        assert (trials[0].folder.path / "checkpoint").exists()
        assert found["a"][0].summary.error.endswith("its worker was asked to stop")
        assert signal.getsignal(signal.SIGINT) is before


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

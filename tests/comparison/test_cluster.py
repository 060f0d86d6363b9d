"""Trials on a local Ray cluster."""

import sys

import pytest

from qtool.comparison.cluster import Cluster
from qtool.comparison.executors import run_trials
from qtool.errors import InputError
from tests.comparison.executor_cases import ExecutorTestCase
from tests.comparison.fake_trainings import Fake, trials_of, tries_of


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

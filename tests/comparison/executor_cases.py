"""What every executor has to do, as tests: a class of an executor's tests inherits them."""

import pytest

from qtool.comparison.execution.executors import run_trials
from qtool.errors import InputError
from tests.comparison.fake_trainings import Fake, processes_of, trials_of, tries_of


class ExecutorTestCase:
    def executor(self):
        """Return a new executor."""
        raise NotImplementedError

    def run(self, trials, train=None):
        return run_trials(trials, train or Fake(), self.executor())

    def test_every_trial_has_its_outcome_by_arm_and_seed(self, tmp_path):
        trials = trials_of(tmp_path, "b", "large", "a", seeds=(7, 2))
        found = self.run(trials)

        assert list(found) == ["b", "large", "a"]
        for done in found.values():
            assert [each.trial.seed for each in done] == [7, 2]
            assert [each.accuracy for each in done] == [0.08, 0.03]
        assert [each.trial for done in found.values() for each in done] == trials
        assert [tries_of(trial) for trial in trials] == [1] * 6

    def test_trials_begin_seed_by_seed(self, tmp_path, capsys):
        self.run(trials_of(tmp_path, "a", "b", seeds=(1, 2)))
        begun = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trial")]

        turns = ["a, seed 1", "b, seed 1", "a, seed 2", "b, seed 2"]
        assert begun == [f"trial {number}/4: {turn}" for number, turn in enumerate(turns, 1)]

    def test_a_trial_that_fails_does_not_stop_the_others(self, tmp_path):
        found = self.run(trials_of(tmp_path, "diverges", "a", seeds=(0, 1)))

        assert [each.finished for each in found["diverges"]] == [False, False]
        assert found["diverges"][0].summary.error == "the loss is not finite"
        assert [each.finished for each in found["a"]] == [True, True]

    def test_a_trial_that_dies_is_tried_once_more(self, tmp_path, capsys):
        trials = trials_of(tmp_path, "starves once", "a")
        found = self.run(trials)

        assert [tries_of(trial) for trial in trials] == [2, 1]
        assert found["starves once"][0].finished
        assert "it is tried once more" in capsys.readouterr().err

    def test_a_trial_that_dies_twice_has_failed(self, tmp_path, capsys):
        trials = trials_of(tmp_path, "starves", "a")
        found = self.run(trials)

        assert [tries_of(trial) for trial in trials] == [2, 1]
        assert not found["starves"][0].finished
        assert "died 2 times" in found["starves"][0].summary.error
        assert "as a test wants it" in found["starves"][0].summary.error
        assert found["a"][0].finished
        assert "it counts as failed" in capsys.readouterr().err

    def test_what_every_trial_would_meet_ends_the_comparison(self, tmp_path):
        trials = trials_of(tmp_path, "refused", "a", seeds=(0, 1, 2))
        with pytest.raises(InputError, match=r"^no such data$"):
            self.run(trials)
        assert tries_of(trials[-1]) == 0

    def test_a_list_without_trials_has_no_outcomes(self):
        assert self.run([]) == {}

    def processes(self, trials):
        """Return the processes that trained trials."""
        self.run(trials)
        return [process for trial in trials for process in processes_of(trial)]

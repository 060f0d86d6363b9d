"""What goes to another process that trains a trial, and what comes back from it."""

import pickle
from pathlib import Path

import pytest

from qtool.comparison.execution import tasks
from qtool.comparison.execution.tasks import Ended, Task
from qtool.comparison.execution.trials import Trial
from qtool.errors import InputError, QtoolError, RecipeError
from qtool.numerics.estimators import ESTIMATORS
from tests.comparison.fake_trainings import Fake, summary_of, trials_of, tries_of

OWN = "mine.py:passes"


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trial, bytes]:
    """Send a trial with the user's own estimator to a process that has not loaded it."""
    (tmp_path / "mine.py").write_text("def passes(grad, u, low, high):\n    return grad\n")
    (trial,) = trials_of(tmp_path, "a", estimator=OWN)
    task = Task.of(trial, Fake()).sent()
    monkeypatch.delitem(vars(ESTIMATORS)["_members"], OWN)
    monkeypatch.setattr(tasks, "source_of", lambda name: None)
    return trial, task


def test_the_user_s_own_parts_are_loaded_before_the_trial_is_trained(
    sent: tuple[Trial, bytes],
) -> None:
    trial, task = sent
    assert OWN not in ESTIMATORS
    reply = pickle.loads(task).done()

    assert OWN in ESTIMATORS
    assert reply == {"summary": summary_of(trial).to_json()}
    assert Ended.of(reply) == Ended(summary=summary_of(trial))


def test_a_part_that_has_changed_ends_the_comparison(sent: tuple[Trial, bytes]) -> None:
    trial, task = sent
    file = Path(trial.folder.path.parents[2]) / "mine.py"
    file.write_text("def passes(grad, u, low, high):\n    return 2 * grad\n")
    ended = Ended.of(pickle.loads(task).done())

    assert type(ended.error) is InputError
    assert f"{file}: has changed since the comparison began; start it again" == str(ended.error)
    assert tries_of(trial) == 0
    assert OWN not in ESTIMATORS


def test_a_part_without_a_source_goes_to_no_process(
    sent: tuple[Trial, bytes],
) -> None:
    with pytest.raises(InputError, match=rf"^{OWN}: has no source .* leave out --jobs$"):
        Task.of(sent[0], Fake())


def test_an_error_is_of_the_class_that_it_had_there() -> None:
    def ended(kind: str) -> Ended:
        return Ended.of({"error": kind, "message": "no such key"})

    assert type(ended("RecipeError").error) is RecipeError
    assert str(ended("RecipeError").error) == "no such key"
    assert type(ended("OfALaterVersion").error) is QtoolError
    assert (ended("InputError").summary, ended("InputError").why) == (None, "")

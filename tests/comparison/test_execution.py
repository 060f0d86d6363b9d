"""What is checked before trials are trained, and what is written meanwhile."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from qtool.comparison.execution import room
from qtool.comparison.execution.plan import About, Execution
from qtool.comparison.execution.trials import ComparisonFolder, TrainTrial
from qtool.errors import InputError, WriteError
from qtool.recipe.file import write_recipe
from qtool.reports.comparisons import UnfinishedComparison
from qtool.reports.results import read
from tests.comparison.fake_trainings import Fake, summary_of, trials_of, tries_of

ALL = torch.get_num_threads()


def about(folder: Path) -> About:
    return About("estimators", "r.yaml", ComparisonFolder(folder / "c"))


def said_of(trial, threads: int) -> None:
    """Leave what a finished trial leaves."""
    trial.folder.path.mkdir(parents=True)
    summary_of(trial).write(trial.folder.summary)
    write_recipe(trial.recipe, trial.folder.recipe, "the resolved recipe of this run")
    trial.folder.environment.write_text(json.dumps({"threads": threads}))


@pytest.mark.parametrize(
    ("jobs", "threads", "wanted"),
    [(None, None, ALL), (1, None, ALL), (2, None, 1), (None, 3, 3), (2, 3, 3)],
)
def test_threads_are_one_where_several_trials_share_the_processor(jobs, threads, wanted):
    assert Execution(jobs, threads).threads_of_each == wanted


def test_a_cluster_trains_with_one_thread_each():
    assert Execution(cluster="local").threads_of_each == 1


def test_processes_start_before_trials_are_given_where_some_are_left(tmp_path):
    trials = trials_of(tmp_path, "a", "b", threads=1)
    said_of(trials[0], 1)
    with Execution(4).started(trials) as execution:
        assert [slot.process_id is None for slot in execution.slots] == [False]  # one is left
        assert execution.outcomes_of(trials[1:], Fake(), about(tmp_path))["b"][0].finished
    assert execution.slots[0].process_id is None
    for here in (Execution(), Execution(cluster="local")):
        with here.started(trials_of(tmp_path, "c")) as same:
            assert same is here
    with (done := Execution(2)).started(trials[:1]) as same:
        assert same is done


def test_trials_of_another_recipe_are_refused_before_anything_is_counted_or_started(tmp_path):
    trials = trials_of(tmp_path, "a", "b")
    said_of(trials[1], ALL)
    others = trials_of(tmp_path, "a", "b", epochs=2)
    differs = r"b/seed-0: holds a different run \(training.epochs: 1.* choose another --output"
    with pytest.raises(InputError, match=differs), Execution(2).started(others):
        pytest.fail("it was started")
    trials[1].folder.recipe.write_text("{")  # damaged: its own training says what becomes of it
    with Execution().started(others):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs": 0}, "--jobs 0: give a number from 1"),
        ({"threads": -1}, "--threads -1: give a number from 1"),
        ({"keep": "some"}, "--keep some: choose none or last"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Execution(**options)


def test_trials_of_other_threads_are_refused_with_the_number_that_takes_them(tmp_path):
    trials = trials_of(tmp_path, "a", "b", seeds=(0, 1))
    said_of(trials[0], 3)
    with pytest.raises(InputError, match=r"\(1 with 3\).* --threads 3 goes on with them; or"):
        Execution(threads=2).outcomes_of(trials, Fake(), about(tmp_path))
    assert [tries_of(trial) for trial in trials] == [0, 0, 0, 0]

    found = Execution(threads=3).outcomes_of(trials, Fake(), about(tmp_path))
    assert {each.trial.threads for done in found.values() for each in done} == {3}


def test_trials_of_several_numbers_of_threads_leave_only_another_output(tmp_path):
    trials = trials_of(tmp_path, "a", "b")
    said_of(trials[0], 3)
    said_of(trials[1], 2)
    with pytest.raises(InputError, match=r"\(1 with 2 and 1 with 3\).* 2; choose another --output"):
        Execution(threads=2).outcomes_of(trials, Fake(), about(tmp_path))


def test_a_folder_that_does_not_say_its_threads_is_told_of(tmp_path, capsys):
    trials = trials_of(tmp_path, "a")
    said_of(trials[0], 3)
    trials[0].folder.environment.write_text("{}")
    Execution(threads=2).outcomes_of(trials, Fake(), about(tmp_path))
    assert "1 trials there do not say with how many threads" in capsys.readouterr().err


def test_a_comparison_json_of_before_the_end_says_that_it_is_partial(tmp_path):
    trials = trials_of(tmp_path, "a", "diverges", seeds=(0, 1))
    seen = []

    def train(trial):
        seen.append(read(path) if path.is_file() else None)
        return Fake()(trial)

    path = about(tmp_path).folder.report
    Execution(threads=1).outcomes_of(trials, train, about(tmp_path))
    first, _, third, last = seen

    assert first is None
    assert isinstance(last, UnfinishedComparison)
    assert (last.partial.done, last.partial.trials) == (3, 4)
    assert [arm.values for arm in last.arms] == [[0.01, 0.02], [None, None]]
    assert [arm.failed for arm in third.arms] == [0, 1]
    assert [str(each) for each in last.failed_trials] == [
        "diverges, seed 0 failed: the loss is not finite"
    ]
    assert (last.threads, last.seeds) == (1, [0, 1])
    assert last.verdict == "not finished: 3 of 4 trials are done, so nothing is judged"


def test_looks_and_a_finished_comparison_of_before_are_not_lost(tmp_path):
    trials = trials_of(tmp_path, "a", seeds=(0, 1, 2, 3))
    said_of(trials[0], 1)
    said_of(trials[1], 1)
    path, seen = about(tmp_path).folder.report, []
    looks = [{"seeds": [0, 1], "alpha": 0.05, "planned": True, "verdict": "-"}]
    path.write_text(json.dumps({"kind": "estimators", "looks": looks}))
    before = path.read_text()

    def train(trial):
        seen.append(path.read_text())
        return Fake()(trial)

    Execution(threads=1).outcomes_of(trials, train, about(tmp_path))
    assert seen[:3] == [before] * 3
    assert json.loads(seen[3])["looks"] == looks
    assert json.loads(seen[3])["partial"] == {"done": 3, "trials": 4}


def test_sizes_of_files_are_known_before_they_are_written(tmp_path):
    (trial,) = trials_of(tmp_path, "a", epochs=2)
    TrainTrial(torch.device("cpu"))(trial)
    sizes, folder = room.sizes_of(trial.recipe), trial.folder

    assert folder.weights.stat().st_size == pytest.approx(sizes.weights, rel=0.1)
    assert folder.checkpoint.stat().st_size == pytest.approx(sizes.checkpoint, rel=0.1)
    both = [path.stat().st_size for path in folder.path.glob("*.pt")] + [
        folder.weights.stat().st_size
    ]
    assert sum(both) == pytest.approx(sizes.kept("all"), rel=0.1)


def test_a_disk_without_room_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    trials = trials_of(tmp_path, "a", seeds=range(20))
    one = room.sizes_of(trials[0].recipe)
    monkeypatch.setattr(room, "LEFT_ALONE", 0)
    usage = namedtuple("Usage", "free")

    def with_free(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))

    with_free(20 * (2 * one.checkpoint + one.weights) + one.checkpoint - 1)
    with pytest.raises(WriteError, match=r"20 trials .* are free there; --keep last prunes"):
        Execution(threads=1).outcomes_of(trials, Fake(), about(tmp_path))
    with_free(one.checkpoint)
    with pytest.raises(WriteError, match=r"are free there; choose another --output"):
        Execution(threads=1, keep="none").outcomes_of(trials, Fake(), about(tmp_path))
    with_free(20 * one.weights + 3 * one.checkpoint)
    Execution(threads=1, keep="none").outcomes_of(trials, Fake(), about(tmp_path))


def test_more_threads_at_once_than_processors_are_told_of():
    assert Execution(2, 2).crowded(2).startswith("note: 2 trials of 2 threads each share 2 proc")
    assert Execution(2, 1).crowded(2) == Execution(1, 8).crowded(2) == ""
    assert Execution(2, 8, cluster="local").crowded(2) == ""

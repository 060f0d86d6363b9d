"""What a trial's folder keeps: damaged files are made anew or reported, checkpoints pruned."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qtool.comparison.execution.cluster import Cluster
from qtool.comparison.execution.executors import Executor, run_trials
from qtool.comparison.execution.kept_files import Keep, damage_of
from qtool.comparison.execution.processes import Processes
from qtool.comparison.execution.slots import Slot
from qtool.comparison.execution.tasks import Ended
from qtool.comparison.execution.trials import Train, TrainTrial, Trial
from qtool.errors import InputError
from qtool.reports.results import Summary
from qtool.runs.kept.folder import RunFolder
from tests.comparison.fake_trainings import summary_of, trials_of

TRAIN = TrainTrial(torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    (trial,) = trials_of(tmp_path_factory.mktemp("finished"), "a", threads=1, epochs=2)
    assert TRAIN(trial).status == "finished"
    return trial


@pytest.fixture
def trial(finished: Trial, tmp_path: Path) -> Trial:
    """A finished trial in a folder of its own."""
    shutil.copytree(finished.folder.path, tmp_path / "a")
    return replace(finished, folder=RunFolder(tmp_path / "a"))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "metrics.jsonl"])
def test_a_damaged_report_is_made_anew(
    name: str, trial: Trial, finished: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(trial.folder.path / name)
    assert damage_of(trial.folder) == f"{trial.folder.path / name}: damaged"
    wanted = TRAIN(finished)
    got = TRAIN(trial)

    assert (got.status, got.validation_accuracy) == ("finished", wanted.validation_accuracy)
    assert f"{name}: damaged;" in capsys.readouterr().err
    assert damage_of(trial.folder) == ""
    assert trial.folder.environment.is_file()
    assert trial.folder.metrics.read_text() == finished.folder.metrics.read_text()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trial: Trial, finished: Trial) -> None:
    spoil(trial.folder.checkpoint)
    again = TRAIN(trial)

    assert again.status == "finished"
    assert again.validation_loss == TRAIN(finished).validation_loss


def damage_both(folder: RunFolder) -> None:
    spoil(folder.checkpoint)
    spoil(folder.path / "checkpoint.previous.pt")


def damage_recipe(folder: RunFolder) -> None:
    folder.recipe.write_text("model: {name: [")


def damage_reports(folder: RunFolder) -> None:
    cut(folder.metrics)


def damage_pruned(folder: RunFolder) -> None:
    for path in folder.path.glob("checkpoint*"):
        path.unlink()
    cut(folder.summary)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_both, "checkpoint.pt: damaged"),
        (damage_recipe, "recipe.yaml"),
        (damage_pruned, "summary.json"),
    ],
)
def test_what_cannot_be_mended_is_a_failed_trial_and_stays(
    damage: Callable[[RunFolder], None], said: str, trial: Trial
) -> None:
    damage(trial.folder)
    before = {path: path.read_bytes() for path in trial.folder.path.iterdir() if path.is_file()}
    summary = TRAIN(trial)

    assert summary.status == "failed"
    assert said in (summary.error or "")
    assert {path: path.read_bytes() for path in before} == before


def test_another_run_in_the_folder_is_no_damage(trial: Trial) -> None:
    recipe = trial.recipe.model_copy(update={"seed": 7})
    with pytest.raises(InputError, match="holds a different run"):
        TRAIN(replace(trial, recipe=recipe))


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("all", ["checkpoint.previous.pt", "checkpoint.pt", "checkpoint.pt.sha256"]),
        ("last", ["checkpoint.pt", "checkpoint.pt.sha256"]),
        ("none", []),
    ],
)
def test_pruned_trials_are_finished_ones(keep: Keep, left: list[str], trial: Trial) -> None:
    pruning = replace(TRAIN, keep=keep)
    first = pruning(trial)
    written = trial.folder.summary.stat().st_mtime_ns

    assert sorted(path.name for path in trial.folder.path.glob("checkpoint*")) == left
    assert pruning(trial) == first
    assert trial.folder.summary.stat().st_mtime_ns == written
    assert damage_of(trial.folder) == ""


@pytest.mark.parametrize("executor", [Processes(2), Cluster("local", Path())], ids=["jobs", "ray"])
def test_a_finished_comparison_started_again_starts_nothing(
    executor: Executor, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[object]()
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **_: started.append(given))
    monkeypatch.setitem(sys.modules, "ray", None)  # cannot be imported
    pruning = replace(TRAIN, keep="none")
    shutil.copytree(trial.folder.path, tmp_path / "b")
    other = replace(trial, arm="b", folder=RunFolder(tmp_path / "b"))
    found = run_trials([trial, other], pruning, executor)

    assert [each.finished for done in found.values() for each in done] == [True, True]
    assert found["a"][0].summary == Summary.read(trial.folder.summary)
    assert not trial.folder.checkpoint.exists()
    assert started == []


def test_only_what_is_not_finished_or_is_damaged_is_given_to_a_process(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[str]()

    def ended(slot: Slot) -> Ended:
        assert slot.trial is not None
        done, slot.trial = slot.trial, None
        return Ended(summary=summary_of(done))

    def give(slot: Slot, trial: Trial, train: Train) -> None:
        slot.trial = trial
        given.append(trial.arm)

    monkeypatch.setattr(Slot, "give", give)
    monkeypatch.setattr(Slot, "ended", ended)
    new = replace(trial, arm="new", folder=RunFolder(tmp_path / "new"))
    for damage in (damage_recipe, damage_both, damage_reports):
        place = tmp_path / damage.__name__
        shutil.copytree(trial.folder.path, place)
        trials = [new, replace(trial, arm="damaged", folder=RunFolder(place)), trial]
        damage(trials[1].folder)
        given.clear()
        found = run_trials(trials, TRAIN, Processes(1))
        assert list(found) == ["new", "damaged", "a"]
        assert given == ["new", "damaged"]


def test_another_run_in_the_folder_is_told_without_a_process(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "give", None)
    recipe = trial.recipe.model_copy(update={"seed": 7})
    with pytest.raises(InputError, match="holds a different run"):
        run_trials([replace(trial, recipe=recipe)], TRAIN, Processes(1))

"""What a trial's folder keeps: damaged files are made anew or reported, checkpoints pruned."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qtool.comparison.execution.kept_files import Keep, damage_of
from qtool.comparison.execution.trials import TrainTrial, Trial
from qtool.errors import InputError
from qtool.runs.folder import RunFolder
from tests.comparison.fake_trainings import trials_of

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

"""Figures of epochs that other tools are told of; what is told is what metrics.jsonl says."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qtool import pipeline
from qtool.recipe.recipe import Recipe
from qtool.runs.kept import scalars
from qtool.runs.kept.folder import RunFolder
from qtool.runs.kept.scalars import figures_of
from qtool.settings.section import check
from tests.kit import metrics, recipe, refused, shell, write_recipe

TWO = {"training.epochs": 2}


class Recorder:
    """Is told figures, until it fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.told: dict[int, dict[str, float]] = {}
        self.closed, self.fails_at = 0, fails_at

    def tell(self, figures: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no network")
        self.told[step] = dict(figures)

    def close(self) -> None:
        self.closed += 1


def installed(patch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    patch.setitem(scalars.MADE, "wandb", lambda recipe, folder, history: recorder)
    patch.setattr(scalars, "find_spec", lambda name: SimpleNamespace())


def train(folder: Path, **more: Any) -> None:
    path = write_recipe(folder, TWO | {"training.scalars": ["csv", "wandb"]})
    pipeline.train(path, run_dir=folder / "run", device="cpu", **more)


def test_a_tool_is_told_the_numbers_of_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, recorder := Recorder())
    train(tmp_path)
    assert recorder.closed == 1
    assert list(recorder.told) == [2, 4]
    for line, figures in zip(metrics(tmp_path / "run"), recorder.told.values(), strict=True):
        assert figures["validation_accuracy"] == line["validation_accuracy"]
        assert figures["flip_ratio/conv2"] == line["flip_ratio"]["conv2"]
        flat = sum(len(v) if isinstance(v, dict) else 1 for v in line.values())
        assert len(figures) == flat
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert recorder.told[4] == figures_of(RunFolder(tmp_path / "run").history()[1])


def test_a_tool_that_fails_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, recorder := Recorder(fails_at=2))
    train(tmp_path)
    assert len(metrics(tmp_path / "run")) == 2
    assert recorder.told == {}
    said = capsys.readouterr().err
    assert said.count("training.scalars: wandb fails, and is told no more: no network") == 1


def test_a_package_that_is_missing_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)
    path = write_recipe(tmp_path, {"training.scalars": ["tensorboard"]})
    said = refused(tmp_path, "train", str(path))
    assert 'tensorboard is not installed; pip install "qtool[tensorboard]"' in said
    path = write_recipe(tmp_path, {"training.scalars": ["tensorbord"]})
    assert "training.scalars" in refused(tmp_path, "train", str(path))


def test_who_is_told_is_no_part_of_what_a_run_is() -> None:
    several = {"training.scalars": ["wandb"]}
    one, two = (check(Recipe, recipe(changes), "r") for changes in ({}, several))
    assert one.as_dict() != two.as_dict()
    assert one.identity() == two.identity()


def test_event_files_are_those_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = write_recipe(tmp_path, TWO | {"training.scalars": ["tensorboard"]})
    run = tmp_path / "run"
    pipeline.train(path, run_dir=run, device="cpu")
    history = RunFolder(run).history()
    # what came after the first epoch is told again, as where the checkpoint is of that
    again = scalars.TensorBoard(run / "tensorboard", history[:1])
    again.tell({"train_loss": 7.0}, history[1].step)
    again.close()
    read = EventAccumulator(str(run / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in read.Scalars("train_loss")]
    assert found == [(2, pytest.approx(history[0].train_loss)), (4, 7.0)]
    assert len(read.Scalars("sqnr/conv1")) == 1


def test_weights_and_biases_keeps_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    path, run = write_recipe(tmp_path, TWO | {"training.scalars": ["wandb"]}), tmp_path / "run"
    code, out, _ = shell("train", str(path), "--run-dir", str(run), "--json")
    assert code == 0
    assert json.loads(out)["status"] == "finished"
    name = (run / "wandb.id").read_text()
    assert list((run / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))

"""Run folders: whole files or nothing, and nobody else's files."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from qtool import pipeline
from qtool.errors import InputError, RecipeError, WriteError
from qtool.files.json_data import read_json
from qtool.files.reading import intact
from qtool.files.whole import write_atomically, write_json
from qtool.recipe.file import load_recipe
from qtool.runs.kept.begin import open_run
from qtool.runs.kept.folder import RunFolder, report_beside
from tests.kit import metrics, write_recipe

PLAIN = {"quantization": {"weights": {"bits": 4}}, "training.epochs": 2}
CONTRACT = {"recipe.yaml", "environment.json", "metrics.jsonl", "checkpoint.pt", "summary.json"}
CONTRACT |= {"checkpoint.previous.pt", "checkpoint.pt.sha256", "model.safetensors", "metrics.csv"}
CONTRACT |= {"validation.npz"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    pipeline.train(write_recipe(folder, PLAIN), run_dir=folder / "deep" / "run", device="cpu")
    return folder / "deep" / "run"


def test_a_run_leaves_the_files_of_the_contract_and_no_other(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == CONTRACT


def test_metrics_have_one_line_for_each_epoch(run: Path) -> None:
    lines = metrics(run)
    keys = """epoch step train_loss train_accuracy validation_loss validation_accuracy
        learning_rate flip_ratio oscillation_frequency seconds
        saturated_weights levels_in_use sqnr weight_scale"""
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["step"] for line in lines] == [2, 4]
    assert [set(line) for line in lines] == [set(keys.split())] * 2
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["epochs"] == 2
    for key in ("train_loss", "validation_loss", "validation_accuracy"):
        assert summary[key] == lines[-1][key]


def test_metrics_as_csv_say_the_same_with_a_column_for_each_layer(run: Path) -> None:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, metrics(run), strict=True):
        flat = {key: value for key, value in line.items() if not isinstance(value, dict)}
        for key in (name for name, value in line.items() if isinstance(value, dict)):
            flat |= {f"{key}.{layer}": value for layer, value in line[key].items()}
        assert {key: float(cell) for key, cell in row.items()} == flat


def test_the_summary_counts_parameters_and_bits(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    channels = 6 + 16 + 120 + 84 + 10
    lenet = 6 * 26 + 16 * 151 + 120 * (16 * 2 * 2 + 1) + 84 * 121 + 10 * 85
    assert summary["parameters"] == lenet + channels  # a scale for every output channel
    assert summary["weight_bits_mean"] == 4


def test_the_recipe_in_the_folder_is_the_resolved_one(run: Path) -> None:
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept["data"]["augment"] is True
    assert kept["training"]["learning_rate"] == {"name": "constant", "value": 0.01}
    assert load_recipe(run / "recipe.yaml") == load_recipe(run.parents[1] / "r.yaml")


def test_a_failing_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name in ("file/a.json", "folder", f"{'x' * 300}"):
        with pytest.raises(WriteError, match="cannot be written"):
            write_json(tmp_path / name, {})
    assert sorted(child.name for child in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_json_file_must_hold_an_object(tmp_path: Path) -> None:
    for text in ("", "[1]", "{", "3"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=r"a\.json"):
            read_json(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {"ü": None})
    assert read_json(tmp_path / "a.json") == {"ü": None}


def test_opening_a_run_makes_no_folder(tmp_path: Path, run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    (tmp_path / "empty").mkdir()
    for resume in (False, True):
        open_run(recipe, RunFolder(tmp_path / "new" / "run"), resume=resume)
        open_run(recipe, RunFolder(tmp_path / "empty"), resume=resume)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_run_is_opened_again_only_with_resume_and_by_its_own_recipe(run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    open_run(recipe, RunFolder(run), resume=True)
    elsewhere = load_recipe(run / "recipe.yaml", ["data.workers=0", "data.root=x"])
    open_run(elsewhere, RunFolder(run), resume=True)
    with pytest.raises(InputError, match="add --resume"):
        open_run(recipe, RunFolder(run), resume=False)
    other = load_recipe(run / "recipe.yaml", ["training.epochs=3", "quantization.weights.bits=2"])
    with pytest.raises(InputError) as caught:
        open_run(other, RunFolder(run), resume=True)
    assert "quantization.weights.bits: 4 there, 2 here" in str(caught.value)
    assert "training.epochs: 2 there, 3 here" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, run: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="nothing may be written into"):
            open_run(load_recipe(run / "recipe.yaml"), RunFolder(tmp_path / "new"), resume=False)
    finally:
        tmp_path.chmod(0o700)


def test_wrong_contents_become_one_error_that_names_the_file() -> None:
    for wrong in (KeyError("classes"), TypeError("a\nb\nc"), RuntimeError("a\n\tb")):
        with (
            pytest.raises(InputError, match=r"x\.pt: damaged: ('classes' is missing|a b)$"),
            intact(Path("x.pt"), "damaged"),
        ):
            raise wrong
    with pytest.raises(RecipeError, match="mine"), intact(Path("x.pt"), "damaged"):
        raise RecipeError("mine")


def test_reports_of_two_files_in_one_folder_do_not_collide() -> None:
    folder = Path("runs/a")
    assert report_beside(folder / "model.onnx", "export.json") == folder / "export.json"
    named = [report_beside(folder / f"{n}.onnx", "export.json").name for n in "ab"]
    assert named == ["a.export.json", "b.export.json"]


def test_a_checkpoint_holds_plain_data_that_torch_reads_safely(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoint.pt", tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["format"] == 3
    parts = {"format", "model", "optimizer", "history", "random", "architecture", "qtool"}
    assert set(state) == parts
    assert len(state["history"]) == 2

"""`qtool check` and `qtool run`: what a recipe will take, and all of it in one go."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from qtool.bits.costs import macs_of
from qtool.training.loop import Trainer
from tests.kit import as_json, shell, write_recipe

# lenet5 at 16 pixels: its layers, their multiplications and the bits of weights and inputs
LENET5 = {
    "conv1": (6 * 1 * 25 * 16 * 16, 4, 8),
    "conv2": (16 * 6 * 25 * 4 * 4, 4, 4),
    "fc1": (64 * 120, 4, 4),
    "fc2": (120 * 84, 4, 4),
    "fc3": (84 * 10, 4, 4),
}
WEIGHTS = 6 * 25 + 16 * 6 * 25 + 64 * 120 + 120 * 84 + 84 * 10
CHANNELS = 6 + 16 + 120 + 84 + 10
EVERY = {"quantization.activations.place": "every_value"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_check_counts_operations_and_bytes_and_keeps_nothing(here: Path) -> None:
    write_recipe(here, EVERY)
    code, out, err = shell("check", "r.yaml", "--set", "training.epochs=5", "--json")
    assert code == 0, err
    said = as_json(out)
    assert [path.name for path in here.iterdir()] == ["r.yaml"]
    for layer in said["layers"]:
        macs, weights, inputs = LENET5[layer["layer"]]
        assert (layer["macs"], layer["bit_operations"]) == (macs, macs * weights * inputs)
    assert len(said["layers"]) == len(LENET5)
    assert said["macs"] == sum(macs for macs, *_ in LENET5.values())
    assert said["bit_operations"] == sum(m * w * a for m, w, a in LENET5.values())
    assert said["float_bit_operations"] == said["macs"] * 32 * 32
    assert said["parameters"] == WEIGHTS + CHANNELS
    assert said["float_bytes"] == 4 * (WEIGHTS + CHANNELS)
    assert said["packed_bytes"] == WEIGHTS // 2 + 8 * CHANNELS + 4 * CHANNELS
    assert (said["training_images"], said["validation_images"]) == (64, 500)
    assert (said["steps"], said["epochs"], said["weight_bits_mean"]) == (2, 5, 4.0)
    assert 5 * said["epoch_seconds"] <= said["seconds"] < 5 * said["epoch_seconds"] + 5
    assert said["epoch_seconds"] >= said["step_seconds"] > 0
    assert said["peak_memory_bytes"] > 50e6  # torch alone takes more


def test_what_is_in_no_layer_counts_as_float() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)  # 8 x 8 -> 6 x 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.conv(x).flatten(2)  # [1, 4, 36]
            return rows @ rows.transpose(1, 2)

    found = macs_of(Attends().train(), torch.zeros(1, 2, 8, 8))
    assert found["conv"] == 4 * 2 * 9 * 36
    assert found[""] == found["conv"] + 4 * 36 * 4


def test_a_check_is_a_table_for_people(here: Path) -> None:
    write_recipe(here)
    changes = ["--set", "data.batch_size=128", "--set", "quantization.overrides=[{match: fc3}]"]
    float_side = ["--set", "quantization.overrides.0.weights=null"]
    code, out, _ = shell("check", "r.yaml", *changes, *float_side)
    assert code == 0
    assert "64 to train on, 500 to judge by" in out
    assert "data.batch_size is 128: all 64 training images are one batch" in out
    assert "1 epochs, about" in out


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_recipe_that_cannot_be_trained_is_told_before(command: str, here: Path) -> None:
    write_recipe(here, {"data.name": "mnist", "data.root": "nowhere", "data.image_size": 28})
    (here / "nowhere").touch()
    code, _, err = shell(command, "r.yaml")
    assert (code, "nowhere" in err) == (2, True)
    assert shell(command, "none.yaml")[0] == 2
    assert sorted(path.name for path in here.iterdir()) == ["nowhere", "r.yaml"]


def test_a_run_is_trained_converted_and_exported_in_one_go(here: Path) -> None:
    write_recipe(here)
    code, _, err = shell("run", "r.yaml", "--target", "int9")
    assert (code, (here / "runs").exists()) == (2, False)
    assert "unknown target 'int9'; did you mean int8?" in err

    code, out, err = shell("run", "r.yaml", "--no-report", "--json")

    assert code == 0, err
    made = as_json(out)
    assert list(made) == ["run", "train", "convert", "export"]
    assert made["run"] == "runs/r"
    for key, file in (("train", "summary"), ("convert", "convert"), ("export", "export")):
        assert made[key] == json.loads((here / "runs" / "r" / f"{file}.json").read_text())
    assert made["export"]["disagreement"] == ""
    assert (here / made["export"]["file"]).is_file()

    assert shell("run", "r.yaml")[0] == 2  # holds a run, as `train` says


def test_a_run_that_is_stopped_goes_on_as_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(here)
    monkeypatch.setattr(Trainer, "fit", Mock(side_effect=KeyboardInterrupt))
    code, _, err = shell("run", "r.yaml")
    assert code == 130
    line = "stopped; go on with: qtool run runs/r/recipe.yaml --run-dir runs/r --resume"
    assert line in err.splitlines()


@pytest.mark.slow  # one more of the same, with another target
def test_a_run_goes_on_where_it_stopped(here: Path) -> None:
    write_recipe(here)
    assert shell("train", "r.yaml")[0] == 0
    code, out, err = shell("run", "r.yaml", "--resume", "--target", "int8")
    assert code == 0
    assert "is finished already" in err
    assert "accuracy in onnxruntime" in out
    assert "runs/r/model.int8.onnx" in out

"""Every format of a checkpoint and of an integer model that ever was is read, and means the same.

integers/ holds lenet5 on digits of 12 pixels, 4 epochs of 800 images, 4 bits, as the code of then
converted it, with its report; format 2 lies in the runs beside. checkpoint_3/ is a run of make.py.
"""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch

from qtool.evaluation import evaluate
from qtool.integer.converted import converted_state
from qtool.integer.format import READABLE, read_metadata
from qtool.runs.built.equipment import make_loss
from qtool.runs.converted.integer import Integer
from tests.kit import metrics, shell

HERE = Path(__file__).parent
INTEGERS = sorted((HERE / "integers").glob("*.safetensors"))
RUNS = sorted(HERE.glob("*/*/expected_integer.safetensors"))


def test_there_is_a_file_of_every_format() -> None:
    assert {read_metadata(path)["format"] for path in [*INTEGERS, *RUNS]} == set(READABLE)


@pytest.mark.parametrize("path", INTEGERS, ids=lambda path: path.stem)
def test_an_integer_model_is_as_accurate_as_it_was(path: Path) -> None:
    said = json.loads(path.with_suffix(".convert.json").read_text())
    opened = Integer.open(path)
    found = evaluate(opened.model, opened.data.validation.batches(0), make_loss(opened.recipe))
    assert found.accuracy == said["validation_accuracy_after"]
    assert sorted(layer.name for layer in converted_state(opened.model).layers) == sorted(
        layer["name"] for layer in said["layers"]
    )


def test_a_checkpoint_of_format_3_goes_on_as_it_did_then(tmp_path: Path) -> None:
    run = copytree(HERE / "checkpoint_3" / "learned", tmp_path / "run")
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert (state["format"], len(state["history"])) == (3, 2)
    code, _, err = shell(
        "train", str(run / "recipe.yaml"), "--run-dir", str(run), "--device", "cpu", "--resume"
    )
    assert code in (0, None), err
    expected = (run / "expected_metrics.jsonl").read_text().splitlines()
    for was, now in zip(map(json.loads, expected), metrics(run), strict=True):
        for key, value in was.items():
            if key != "seconds":
                assert now[key] == pytest.approx(value, rel=1e-4), (was["epoch"], key)

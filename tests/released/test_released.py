"""Files that older code wrote load, go on, convert, are inspected and exported as they were."""

import json
from copy import deepcopy
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qtool
from qtool.inspection.inspect import inspect_source
from tests.kit import metrics, shell
from tests.released.make import RECIPES, STATES, codes_of, images, small_network

HERE = Path(__file__).parent
RELEASES = sorted(path for path in HERE.iterdir() if (path / "states.pt").is_file())
CPU = torch.device("cpu")
each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def states() -> dict[Path, dict[str, Any]]:
    return {path: torch.load(path / "states.pt", weights_only=False) for path in RELEASES}


def copied(release: Path, name: str, folder: Path) -> Path:
    return copytree(release / name, folder / name)


def test_there_are_files_of_a_release() -> None:
    assert RELEASES


@pytest.mark.parametrize("name", RECIPES)
@each_release
def test_an_interrupted_run_goes_on_as_it_did_then(release, name: str, tmp_path: Path) -> None:
    run = copied(release, name, tmp_path)
    code, _, err = shell(
        "train", str(run / "recipe.yaml"), "--run-dir", str(run), "--device", "cpu", "--resume"
    )
    assert code in (0, None), err
    lines = (run / "expected_metrics.jsonl").read_text().splitlines()
    expected, found = [json.loads(line) for line in lines], metrics(run)
    assert len(found) == len(expected) == 4
    for was, now in zip(expected, found, strict=True):
        for key, value in was.items():
            if key != "seconds":
                assert now[key] == pytest.approx(value, rel=1e-4), (was["epoch"], key)
    code, _, err = shell("convert", str(run), "--device", "cpu")
    assert code in (0, None), err
    old, new = (
        load_file(run / "expected_integer.safetensors"),
        load_file(run / "integer.safetensors"),
    )
    for key in (key for key in old if key.endswith("codes")):
        assert torch.equal(old[key], new[key]), key


@pytest.mark.parametrize("name", RECIPES)
@each_release
def test_runs_and_integer_models_are_inspected(release, name: str, tmp_path: Path) -> None:
    run = copied(release, name, tmp_path)
    scales = [layer.weight_scale for layer in inspect_source(run).layers]
    assert len(scales) == 2
    assert all(scales)
    file = run / "integer.safetensors"
    (run / "expected_integer.safetensors").rename(file)
    assert len(inspect_source(file).layers) == 2


@each_release
def test_an_integer_model_is_exported(release, tmp_path: Path) -> None:
    run = copied(release, "followed", tmp_path)
    file = run / "integer.safetensors"
    (run / "expected_integer.safetensors").rename(file)
    code, out, err = shell("export", str(file), "--output", str(tmp_path / "m.onnx"), "--json")
    assert code in (0, None), err
    assert json.loads(out)["top1_agreement"] >= 0.98


@pytest.mark.parametrize("name", STATES)
@each_release
def test_a_bare_state_dict_stands_for_the_same_network(states, release, name: str) -> None:
    kept = states[release][name]
    for example in (images(), None):
        if example is None and name == "relu outputs":  # its places need one
            continue
        section = deepcopy(
            STATES[name]
        )  # a bare state does not say its place: this was the only one
        section["activations"].setdefault("place", "layer_inputs")
        model = qtool.prepare(small_network(), section, example)
        model.load_state_dict(kept["state_dict"])
        qtool.set_progress(model, 1.0)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(images()), kept["logits"])
        integer = qtool.convert(model, [images()])
        codes: dict[str, Tensor] = codes_of(integer)
        assert codes.keys() == kept["codes"].keys()
        for key, value in codes.items():
            assert torch.equal(value, kept["codes"][key]), key
        with torch.no_grad():
            torch.testing.assert_close(integer(images()), kept["integer_logits"])

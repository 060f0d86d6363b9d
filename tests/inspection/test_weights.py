"""Files of weights, whoever wrote them: their tensors, where they lie, and nothing is run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.kit import Net, refused, shell

PARAMETERS = 3 * 8 * 9 + 2 * 8 + 8 * 8 * 9 + 8 + 2 * 8 + 8 * 5 + 5  # of Net: layers, norms, head
STATISTICS = 4 * 8  # of two batch norms


def inspected(path: Path) -> dict[str, object]:
    code, out, err = shell("inspect", str(path), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "w.safetensors"])
def test_a_bare_state_dict_is_told_tensor_by_tensor(name: str, tmp_path: Path) -> None:
    path, state = tmp_path / name, Net().state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    found = inspected(path)

    assert found["kind"] == "weights"
    assert found["parameters"] == PARAMETERS + STATISTICS
    assert found["file_bytes"] == path.stat().st_size
    layers = found["layers"]
    assert isinstance(layers, list)
    assert {layer["layer"] for layer in layers} == set(state)
    (conv,) = [layer for layer in layers if layer["layer"] == "conv1.weight"]
    assert (conv["weight"], conv["datatype"], conv["bytes"]) == ("8x3x3x3", "float32", 4 * 216)


def test_what_trainers_put_around_it_is_said(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in Net().state_dict().items()}
    average = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "trained.pth"
    torch.save({"epoch": 3, "model": state, "model_ema": average, "optimizer": {}}, path)
    found = inspected(path)

    notes = " ".join(map(str, found["notes"] if isinstance(found["notes"], list) else []))
    assert "model is taken, not model_ema" in notes
    assert "the names begin with module" in notes
    layers = found["layers"]
    assert isinstance(layers, list)
    assert layers[0]["layer"] == "conv1.weight"


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "whole.pth")
    assert "is not safe to load" in refused(tmp_path, "inspect", "whole.pth")


SUMMARY = {
    "status": "finished",
    "run": "runs/r",
    "epochs": 2,
    "seconds": 1.5,
    "parameters": 10,
    "weight_bits_mean": 4.0,
    "validation_accuracy": 0.75,
    "validation_loss": 0.5,
    "train_accuracy": 0.5,
    "train_loss": 0.25,
}


def test_a_result_file_is_shown_as_the_command_that_wrote_it_did(tmp_path: Path) -> None:
    path = tmp_path / "renamed.json"
    path.write_text(json.dumps(SUMMARY))

    assert inspected(path) == SUMMARY
    code, out, _ = shell("inspect", str(path))
    assert code == 0
    for words in ("training finished", "75.00 %", "runs/r"):
        assert words in out


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "half.json").write_text('{"status": "fini')
    assert "other.json: no result of qtool" in refused(tmp_path, "inspect", "other.json")
    assert "half.json: cannot be read as JSON" in refused(tmp_path, "inspect", "half.json")

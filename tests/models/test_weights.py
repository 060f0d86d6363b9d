"""Weights from files: every form that is taken, and every way a file can be wrong."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import qtool
from qtool.errors import DataError
from qtool.models.vision import Built, build_model
from qtool.models.weights import is_weights_file
from qtool.reports.results import EpochLine
from qtool.runs.kept import checkpoint


def lenet(path: Path | str, classes: int = 10) -> Built:
    return build_model("lenet5", classes, 1, 16, weights=str(path))


@pytest.fixture
def trained() -> dict[str, Tensor]:
    return build_model("lenet5", 10, 1, 16).model.state_dict()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("none", False),
        ("IMAGENET1K_V1", False),
        ("w.pt", True),
        ("w.th", True),
        ("a/b", True),
        ("w.bin", True),
    ],
)
def test_a_path_is_told_from_a_name(weights: str, expected: bool) -> None:
    assert is_weights_file(weights) is expected


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: dict(state),
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best": 0.9},
    ],
    ids=["bare", "dict", "wrapped", "module", "wrapped module"],
)
@pytest.mark.parametrize("suffix", ["pt", "th"])
def test_every_usual_form_of_a_state_dict_is_taken(
    wrap: Callable[[Any], Any], suffix: str, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(wrap(trained), tmp_path / f"w.{suffix}")
    built = lenet(tmp_path / f"w.{suffix}")
    assert built.note in (
        "",
        f"{tmp_path}/w.{suffix}: all names begin with module., which is left out",
    )
    assert all(torch.equal(v, trained[k]) for k, v in built.model.state_dict().items())


def test_safetensors_and_half_precision_are_taken(
    trained: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {key: value.half() for key, value in trained.items()}
    save_file(halves, tmp_path / "w.safetensors")
    model = lenet(tmp_path / "w.safetensors").model
    assert all(torch.equal(v, halves[k].float()) for k, v in model.state_dict().items())


def test_a_home_folder_is_found(
    trained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(trained, tmp_path / "w.pt")
    assert lenet("~/w.pt").note == ""


def test_models_that_ask_for_the_version_of_their_weights_take_files_without_one(
    tmp_path: Path,
) -> None:
    state = build_model("mnasnet0_5", 7, 3, 32).model.state_dict()
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    save_file({k: v for k, v in state.items() if k not in counters}, tmp_path / "w.safetensors")
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        model = build_model("mnasnet0_5", 7, 3, 32, weights=str(tmp_path / file)).model
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_head_for_other_classes_starts_fresh_and_the_user_is_told(
    trained: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(trained, tmp_path / "w.pt")
    built = lenet(tmp_path / "w.pt", classes=3)
    assert built.note == (
        f"{tmp_path}/w.pt: its head fc3 has 10 classes and the data 3, so the head starts fresh"
    )
    state = built.model.state_dict()
    assert torch.equal(state["conv1.weight"], trained["conv1.weight"])
    assert state["fc3.weight"].shape == (3, 84)


def test_any_other_difference_is_listed(trained: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(trained)
    for key in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        del state[key]
    state["extra"] = torch.zeros(1)
    state["fc1.weight"] = torch.zeros(120, 5)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(DataError) as caught:
        lenet(tmp_path / "w.pt")
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/w.pt: does not fit the model",
        "  4 missing: conv1.weight, conv1.bias, conv2.weight, ...",
        "  1 unexpected: extra",
        "  1 of another shape: fc1.weight [120, 5] (the model's: [120, 64])",
    ]


def test_a_head_with_other_inputs_is_a_difference(
    trained: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(trained | {"fc3.weight": torch.zeros(10, 5)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"1 of another shape: fc3\.weight"):
        lenet(tmp_path / "w.pt")


class Hostile:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/qtool-test-was-here",)


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"not weights at all",
        b"PK\x03\x04 half a zip",
        b"\x80\x02",
        pickle.dumps(Hostile()),
        b"\xff" * 64,
        b"{}",
    ],
    ids=["text", "half zip", "half pickle", "hostile", "bytes", "json"],
)
def test_damaged_and_hostile_files_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged, or holds more than tensors") as caught:
        lenet(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not Path("/tmp/qtool-test-was-here").exists()


def test_whole_modules_and_cut_files_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-300])
    for name in ("module.pt", "cut.pt"):
        with pytest.raises(DataError, match=r"is damaged, or holds more than|holds torch\.nn\."):
            lenet(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state_dict, a mapping from names to tensors"),
        ({}, "holds no state_dict"),
        ({"state_dict": {}}, "holds no state_dict"),
        ({"model": {"a": 3}, "epoch": 3}, "no plain tensor under a;"),
        ({"a": torch.zeros(1).to_sparse()}, "no plain tensor under a;"),
        ({"a": torch.tensor([1.0, float("nan")])}, "has values that are not finite, in a"),
    ],
)
def test_files_of_something_else_say_what_is_needed(
    content: object, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(DataError, match=message):
        lenet(tmp_path / "w.pt")


def test_missing_and_empty_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    for path, message in (
        (tmp_path / "gone.pt", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.pt", "is empty"),
    ):
        with pytest.raises(DataError, match=f"{path}: {message}"):
            lenet(path)


def run_checkpoint(folder: Path, quantization: dict[str, Any], size: int = 16) -> dict[str, Any]:
    """Write what a run's checkpoint.pt holds; return its model's state."""
    network = qtool.prepare(
        build_model("lenet5", 10, 1, size).model, quantization, torch.randn(4, 1, size, size)
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    state = checkpoint.take(
        network, optimizer, [EpochLine.model_construct(epoch=1, train_accuracy=None)], {"a": 1}
    )
    checkpoint.save(state, folder / "checkpoint.pt")
    return state.model


@pytest.mark.parametrize(
    "quantization",
    [
        {},
        {"activations": {"bits": 2, "place": "relu_outputs"}},
        {
            "weights": {"bits": 4, "granularity": "per_channel"},
            "activations": {"bits": 4, "place": "layer_inputs"},
        },
    ],
    ids=["float", "at relus", "weights and inputs"],
)
def test_the_checkpoint_of_a_run_gives_its_weights_without_its_quantizers(
    quantization: dict[str, Any], tmp_path: Path
) -> None:
    trained = run_checkpoint(tmp_path, quantization)
    found = lenet(tmp_path / "checkpoint.pt").model.state_dict()
    assert len(found) == 10
    assert all(torch.equal(value, trained[key]) for key, value in found.items())


def test_the_checkpoint_of_a_network_of_another_size_is_refused(tmp_path: Path) -> None:
    run_checkpoint(tmp_path, {}, size=28)
    with pytest.raises(DataError, match=r"does not fit the model\n.*fc1\.weight \[120, 400\]"):
        lenet(tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match=r"a folder; model\.weights names a file, such as checkpoi"):
        lenet(f"{tmp_path}/.")

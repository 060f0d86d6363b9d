"""A damaged checkpoint is refused by who reads it, and training goes on from the one before."""

import shlex
from pathlib import Path
from shutil import copytree

import pytest
import torch

from qtool import pipeline
from tests.kit import metrics, shell, write_recipe

QUICK = {"training.epochs": 3, "data.train_samples": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    pipeline.train(write_recipe(folder, QUICK), run_dir=folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copytree(trained, tmp_path / "run")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


def without_times(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics(run)]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint.pt", weights_only=True)["model"]


@pytest.mark.parametrize("damage", ["a bit", "cut off", "gone"])
def test_training_goes_on_from_the_one_before_and_ends_the_same(damage: str, run: Path) -> None:
    expected, weights = without_times(run), weights_of(run)
    path = run / "checkpoint.pt"
    if damage == "a bit":
        flip(path)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
    if damage != "gone":
        for command in (["convert"], ["export"], ["inspect"], ["compare", "runs"]):
            code, out, err = shell(*command, str(run))
            assert (code, out) == (2, "")
            assert f"{path}: damaged, it is not what was written" in err
            assert err.rstrip().endswith(f"qtool train {run}/recipe.yaml --run-dir {run} --resume")
    named = f"train {run}/recipe.yaml --run-dir {run} --resume --device cpu"
    code, _, err = shell(*shlex.split(named))
    assert code in (0, None), err
    word = "missing" if damage == "gone" else "damaged"
    assert f"{path}: {word}; going on from checkpoint.previous.pt" in err
    assert "going on after epoch 2" in err
    assert without_times(run) == expected
    assert all(torch.equal(value, weights[key]) for key, value in weights_of(run).items())
    assert shell("convert", str(run), "--device", "cpu")[0] in (0, None)


def test_where_both_are_damaged_nothing_is_trained(run: Path) -> None:
    flip(run / "checkpoint.pt")
    flip(run / "checkpoint.previous.pt")
    code, out, err = shell("train", str(run / "recipe.yaml"), "--run-dir", str(run), "--resume")
    assert (code, out) == (2, "")
    assert "restore it, or delete it and train from the beginning with: qtool train" in err
    (run / "checkpoint.pt").unlink()
    (run / "checkpoint.previous.pt").unlink()
    (run / "summary.json").unlink()
    code, _, err = shell("train", str(run / "recipe.yaml"), "--run-dir", str(run), "--resume")
    assert code in (0, None), err


def test_a_folder_of_before_there_were_digests_is_read(run: Path) -> None:
    (run / "checkpoint.pt.sha256").unlink()
    (run / "checkpoint.previous.pt").unlink()
    assert shell("convert", str(run), "--device", "cpu")[0] in (0, None)
    flip(run / "checkpoint.pt")
    code, _, err = shell("convert", str(run), "--device", "cpu")
    assert code == 2
    assert "damaged, it is not what was written" in err

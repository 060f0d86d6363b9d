"""A run says by name what of its data has changed when it goes on."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image

from qtool.data.datasets import DATASETS
from qtool.data.fingerprint import Fingerprint, changes, fingerprint
from qtool.data.loaders import make_loaders
from tests.kit import shell, write_recipe

CPU = torch.device("cpu")


def fingerprint_of(root: Path, name: str, **params: object) -> Fingerprint:
    source = DATASETS.build(name, **params)(root)
    return fingerprint(
        make_loaders(source, batch_size=4, image_size=8, train_samples=None, seed=0, device=CPU)
    )


def images(folder: Path) -> Path:
    """Write three images of two classes for each half; return the folder."""
    for half in ("train", "val"):
        for name in ("cat/0.png", "cat/1.png", "dog/2.png"):
            path = folder / half / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (int(path.stem), 0, 0)).save(path)
    return folder


def written(root: Path, **arrays: np.ndarray) -> Path:
    made = {
        "x_train": np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8),
        "y_train": np.arange(8) % 2,
        "x_test": np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8),
        "y_test": np.arange(4) % 2,
    }
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "a.npz", **made | arrays)
    return root


def test_the_same_data_elsewhere_are_the_same(tmp_path: Path) -> None:
    one = images(tmp_path / "one")
    other = copytree(one, tmp_path / "deep" / "other")
    for path in other.rglob("*.png"):
        path.touch()
    before, now = (fingerprint_of(root, "image_folder") for root in (one, other))
    assert before == now
    assert changes(before, now) == []
    assert Fingerprint.model_validate(before.to_json()) == before


FILES = {
    "one more": ("train/dog/3.png", ["training images: 3 before, 4 now"]),
    "another name": ("val/cat/0.png", ["validation images: other names of files"]),
    "another size": ("train/cat/0.png", ["training images: files of other sizes"]),
    "another class": ("train/emu/0.png", ["2 classes before, 3 now"]),
}


@pytest.mark.parametrize(("name", "expected"), FILES.values(), ids=FILES)
def test_files_are_told_by_names_sizes_and_counts(
    name: str, expected: list[str], tmp_path: Path
) -> None:
    before = fingerprint_of(images(tmp_path), "image_folder")
    path = tmp_path / name
    if name.startswith("val"):
        path.rename(path.with_name("00.png"))
    elif path.exists():
        path.write_bytes(path.read_bytes() + b"more")
    else:
        for half in ("train", "val") if "emu" in name else ("train",):
            other = tmp_path / half / Path(*Path(name).parts[1:])
            other.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(other)
    assert changes(before, fingerprint_of(tmp_path, "image_folder"))[:1] == expected


def test_arrays_are_told_by_their_contents(tmp_path: Path) -> None:
    before = fingerprint_of(written(tmp_path), "arrays", file="a.npz")
    other = np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8)
    other[3, 4, 5] ^= 1
    now = fingerprint_of(written(tmp_path, x_train=other), "arrays", file="a.npz")
    assert changes(before, now) == ["training images: other contents"]
    labels = np.array([1, 1, 0, 1])
    now = fingerprint_of(written(tmp_path, y_test=labels), "arrays", file="a.npz")
    assert changes(before, now) == ["validation images: other labels"]


def test_a_run_that_goes_on_says_what_has_changed(tmp_path: Path) -> None:
    said = {
        "data": {"name": "arrays", "file": "a.npz", "root": str(tmp_path / "data")},
        "training.epochs": 2,
        "model": {"name": "two_linear_layers", "columns": 64, "hidden": 2},
    }
    written(tmp_path / "data")
    path, run = write_recipe(tmp_path, said), tmp_path / "run"
    argv = ["train", str(path), "--run-dir", str(run), "--device", "cpu"]
    assert shell(*argv)[0] in (0, None)
    (run / "checkpoint.pt").unlink()  # it goes on from the one before
    code, _, err = shell(*argv, "--resume")
    assert code in (0, None), err
    assert "the data have changed" not in err
    (run / "checkpoint.pt").unlink()
    written(tmp_path / "data", y_test=np.array([1, 1, 0, 1]))
    code, _, err = shell(*argv, "--resume")
    assert code in (0, None), err
    assert f"{run}: the data have changed: validation images: other labels" in err

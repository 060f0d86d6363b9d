"""Data sets in memory: digits, and torchvision's own files written in miniature."""

import gzip
import hashlib
import io
import pickle
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100, MNIST

from qtool.data.datasets import DATASETS, default_root
from qtool.data.sources import Split
from qtool.errors import DataError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every connection fail, and list the attempts."""
    asked = []

    def refuse(request: Any, *args: object, **kwargs: object) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_mnist(raw: Path) -> np.ndarray:
    """Write 6 training and 2 test images; return the training images."""
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28))
    for half, count in (("train", 6), ("t10k", 2)):
        (raw / f"{half}-images-idx3-ubyte").write_bytes(idx_bytes(images[:count]))
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count)))
    return images


def in_memory(split: object) -> Split:
    assert isinstance(split, Split)
    return split


def test_digits_are_all_there_split_by_class_and_scaled_to_bytes() -> None:
    source = DATASETS["digits"](Path("/nowhere"))
    train, validation = in_memory(source.train), in_memory(source.validation)
    assert (len(train), len(validation), source.classes, source.image_size) == (1297, 500, 10, 8)
    assert train.images.shape == (1297, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    bunch: Any = load_digits()
    expected = sorted(
        np.rint(bunch.images * 255 / 16).astype(np.uint8).tobytes()[i * 64 : i * 64 + 64]
        for i in range(1797)
    )
    found = torch.cat([train.images, validation.images]).numpy()
    assert sorted(image.tobytes() for image in found) == expected
    counts = validation.labels.bincount()
    assert counts.min() >= 48
    assert counts.max() <= 52


def test_digits_split_is_that_of_scikit_learn_with_seed_0() -> None:
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    _, held_out = train_test_split(
        np.arange(1797), test_size=500, stratify=bunch.target, random_state=0
    )
    labels = in_memory(DATASETS["digits"](Path()).validation).labels
    assert labels.tolist() == bunch.target[np.sort(held_out)].tolist()


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist_is_read_from_torchvisions_folder(name: str, folder: str, tmp_path: Path) -> None:
    images = write_mnist(tmp_path / folder / "raw")
    source = DATASETS[name](tmp_path)
    train = in_memory(source.train)
    np.testing.assert_array_equal(train.images[:, 0].numpy(), images)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(source.validation) == 2
    assert source.note == ""


def cifar100_bytes(folder: Path) -> np.ndarray:
    """Write 4 training and 2 test images; return the training images, [N, 3, 32, 32]."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    for name, count in (("train", 4), ("test", 2)):
        rows = {"data": images[:count].reshape(count, -1), "fine_labels": [99, 1, 2, 3][:count]}
        (folder / name).write_bytes(pickle.dumps(rows))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    return images


def accept_checksums(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})


def test_cifar100_is_read_from_torchvisions_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = cifar100_bytes(tmp_path / "cifar-100-python")
    accept_checksums(monkeypatch, tmp_path / "cifar-100-python")
    train = in_memory(DATASETS["cifar100"](tmp_path).train)
    np.testing.assert_array_equal(train.images.numpy(), images)
    assert train.labels.tolist() == [99, 1, 2, 3]


def test_an_archive_the_user_put_there_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    cifar100_bytes(tmp_path / "made" / "cifar-100-python")
    accept_checksums(monkeypatch, tmp_path / "made" / "cifar-100-python")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    root = tmp_path / "root"
    root.mkdir()
    (root / CIFAR100.filename).write_bytes(packed.getvalue())
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    assert len(DATASETS["cifar100"](root).train) == 4
    assert no_network == []
    assert (root / "cifar-100-python" / "train").is_file()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_data_set_says_what_is_expected_and_leaves_nothing_behind(
    name: str, tmp_path: Path, no_network: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new"
    for _ in range(2):
        with pytest.raises(DataError, match="no network in tests") as caught:
            DATASETS[name](root)
        message = str(caught.value)
        assert message.startswith(f"{name}: not found or incomplete")
        assert str(root) in message
        assert "data.root" in message
        assert "QTOOL_DATA" in message
        assert "\n" not in message
    assert no_network
    assert list(root.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_root_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="mnist: not found"):
        DATASETS["mnist"](tmp_path / "file" / "data")


def test_an_interrupted_download_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(self: MNIST) -> None:
        raw = Path(self.raw_folder)
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(MNIST, "download", cut_off)
    with pytest.raises(KeyboardInterrupt):
        DATASETS["mnist"](tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_moved_to_where_the_next_call_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def succeed(self: MNIST) -> None:
        write_mnist(Path(self.raw_folder))

    monkeypatch.setattr(MNIST, "download", succeed)
    assert len(DATASETS["mnist"](tmp_path).train) == 6
    monkeypatch.undo()
    assert len(DATASETS["mnist"](tmp_path).train) == 6


def test_damaged_files_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"mnist: the files in .*raw are damaged"):
        DATASETS["mnist"](tmp_path)


def test_labels_of_another_length_are_damage(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(5)))
    with pytest.raises(DataError, match="are damaged"):
        DATASETS["mnist"](tmp_path)


def test_gz_files_of_mnist_are_unpacked_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    made, raw = tmp_path / "made", tmp_path / "root" / "MNIST" / "raw"
    write_mnist(made)
    raw.mkdir(parents=True)
    resources = []
    for path in made.iterdir():
        packed = gzip.compress(path.read_bytes())
        (raw / f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    assert len(DATASETS["mnist"](tmp_path / "root").train) == 6
    assert no_network == []


def write_cifar_npz(path: Path, size: int = 32, label: int = 9) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    labels = np.array([0, 1, 2, 3, label])
    np.savez(path, x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    return images


def test_cifar10_takes_an_npz_and_says_how_many_images_it_has(tmp_path: Path) -> None:
    images = write_cifar_npz(tmp_path / "cifar10.npz")
    source = DATASETS["cifar10"](tmp_path)
    expected = np.transpose(images, (0, 3, 1, 2))
    np.testing.assert_array_equal(in_memory(source.train).images.numpy(), expected)
    assert source.classes == 10
    assert source.mean == (0.4914, 0.4822, 0.4465)
    assert "cifar10.npz holds 5 training and 2 test images" in source.note


@pytest.mark.parametrize("wrong", [{"size": 28}, {"label": 10}])
def test_a_cifar10_npz_with_other_images_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    write_cifar_npz(tmp_path / "cifar10.npz", **wrong)
    with pytest.raises(DataError, match=r"cifar10\.npz: holds images .* CIFAR-10 has"):
        DATASETS["cifar10"](tmp_path)


def test_the_default_root_is_the_environments_or_in_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QTOOL_DATA", "~/somewhere")
    assert default_root() == Path.home() / "somewhere"
    monkeypatch.setenv("QTOOL_DATA", "")
    assert default_root() == Path.home() / ".cache/qtool/data"

"""Images in .npz files: what is read, and every way a file can be wrong."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtool.data.arrays import arrays
from qtool.data.datasets import DATASETS
from qtool.data.sources import Split
from qtool.errors import DataError
from qtool.files import archives


def good() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (6, 4, 4, 3), np.uint8),
        "y_train": np.arange(6),
        "x_test": rng.integers(0, 256, (2, 4, 4, 3), np.uint8),
        "y_test": np.array([7, 0]),
    }


def write(folder: Path, **changes: Any) -> None:
    content = good() | changes
    kept = {key: value for key, value in content.items() if value is not None}
    np.savez(folder / "a.npz", **kept)


def test_images_move_their_channels_to_the_front(tmp_path: Path) -> None:
    write(tmp_path)
    source = arrays(tmp_path, file="a.npz")
    assert isinstance(source.train, Split)
    expected = np.transpose(good()["x_train"], (0, 3, 1, 2))
    np.testing.assert_array_equal(source.train.images.numpy(), expected)
    assert (source.classes, source.image_size, source.flip) == (8, 4, False)
    np.testing.assert_allclose(source.mean, (expected / 255).mean((0, 2, 3)))
    np.testing.assert_allclose(source.std, (expected / 255).std((0, 2, 3)))


def test_grey_images_and_labels_as_keras_ships_them_are_taken(tmp_path: Path) -> None:
    grey = good()["x_train"][..., 0]
    write(
        tmp_path,
        x_train=grey,
        x_test=grey[:2, :, :, np.newaxis],
        y_train=np.arange(6, dtype=">u2").reshape(6, 1),
    )
    source = arrays(tmp_path, file="a.npz", mean=[0.5], std=[0.25])
    assert isinstance(source.train, Split)
    assert source.train.images.shape == (6, 1, 4, 4)
    assert source.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert (source.mean, source.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("labels", "missing"),
    [([1, 2, 3], "0"), ([0, 50, 3], "1, 2, 4, 5, 6, 7, 8, 9, 10, 11 and 38 more")],
)
def test_labels_with_gaps_are_said_or_counted(
    labels: list[int], missing: str, tmp_path: Path
) -> None:
    write(tmp_path, y_train=np.array(labels * 2), y_test=np.array(labels[1:]))
    plain = arrays(tmp_path, file="a.npz")
    assert plain.classes == max(labels) + 1
    assert f"no image is labelled {missing}" in plain.note
    assert "data.labels: used takes the 3 that occur" in plain.note
    counted = arrays(tmp_path, file="a.npz", labels="used")
    place = {label: index for index, label in enumerate(sorted(labels))}
    assert torch.as_tensor(counted.train.labels).tolist() == [place[label] for label in labels * 2]
    assert torch.as_tensor(counted.validation.labels).tolist() == [place[n] for n in labels[1:]]
    assert counted.class_names == tuple(map(str, sorted(labels)))
    assert (counted.classes, counted.note) == (3, "")


x, y = good()["x_train"], good()["y_train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "y_test: missing; the file holds x_train, y_train, x_test"),
        ({"x_train": x.astype(np.float32)}, "x_train: holds float32; needed are uint8"),
        ({"x_train": np.full((6, 4, 4, 3), np.nan)}, "x_train: holds float64"),
        ({"x_train": x[0, 0]}, r"x_train: has shape \[4, 3\]; needed is \[N, H, W\]"),
        ({"x_train": x[:0], "y_train": y[:0]}, r"x_train: has shape \[0, 4, 4, 3\]; there is no"),
        ({"x_train": x.transpose(0, 3, 1, 2)}, "move the channels to the end"),
        ({"x_train": np.zeros((6, 4, 4, 2), np.uint8)}, "with 1 or 3 channels$"),
        ({"x_train": x[:, :3]}, "images of 3 x 4 pixels; needed are square"),
        ({"y_train": y.astype(float)}, "y_train: holds float64; needed are whole numbers"),
        ({"y_train": np.eye(6, dtype=int)}, r"y_train: has shape \[6, 6\]; needed is \[N\]"),
        ({"y_train": y - 1}, "y_train: runs from -1 to 4; classes count from 0"),
        ({"y_train": y + 10**9}, "y_train: runs from 1000000000 to 1000000005"),
        ({"y_train": y[:4]}, "x_train has 6 images but y_train has 4 labels"),
        ({"x_test": x[:2, :2, :2]}, r"shape \[4, 4, 3\] in x_train but \[2, 2, 3\] in x_test"),
        ({"x_train": np.array([{}], dtype=object)}, "cannot be read as an .npz file without pick"),
        ({"x_train": x * 0}, "set data.std"),
    ],
)
def test_a_file_that_does_not_fit_says_what_would(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        arrays(tmp_path, file="a.npz")
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    write(tmp_path, x_train=x.astype(int), y_train=None, y_test=np.array([0.5, 1.5]))
    with pytest.raises(DataError) as caught:
        arrays(tmp_path, file="a.npz")
    first, *rest = str(caught.value).splitlines()
    assert first.endswith("a.npz: 3 problems")
    assert [line.split(":")[0].strip() for line in rest] == ["y_train", "x_train", "y_test"]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"mean": [0.5]}, "data.mean has 1 values; the images have 3 channels"),
        ({"std": [0.5, 0.5]}, "data.std has 2 values"),
        ({"mean": [0.5, float("nan"), 0.5]}, "data.mean: .* not finite"),
        ({"std": [0.5, 0.0, 0.5]}, "every value must be more than 0"),
        ({"std": [0.5, -1.0, 0.5]}, "every value must be more than 0"),
    ],
)
def test_wrong_statistics_are_refused(
    statistics: dict[str, list[float]], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        arrays(tmp_path, file="a.npz", **statistics)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
def test_a_file_that_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
        arrays(tmp_path, file="a.npz")


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
        arrays(tmp_path, file="a.npz")


def test_one_bare_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(DataError, match=r"holds one array; needed is an \.npz"):
        arrays(tmp_path, file="a.npy")


@pytest.mark.parametrize("file", ["b.npz", "."])
def test_a_missing_file_says_where_files_are_looked_for(file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; data.file .* QTOOL_DATA"):
        arrays(tmp_path, file=file)


def test_a_recipe_must_name_the_file() -> None:
    assert DATASETS.problems("arrays", {}) == [("file", "missing; arrays needs it")]


def with_header(shape: tuple[int, ...], data: bytes) -> bytes:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(made := io.BytesIO(), header)
    return made.getvalue() + data


@pytest.mark.parametrize("shape", [(10**12, 4, 4), (2**40, 2**40, 2**40), (0, 4, 4)])
def test_an_array_is_as_large_as_its_header_says_before_it_is_read(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    write(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz") as given:
        files = {name: given.read(name) for name in given.namelist()}
    files["x_train.npy"] = with_header(shape, bytes(16))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    with pytest.raises(DataError, match=r"x_train takes .* bytes, as it says, and has 16"):
        arrays(tmp_path, file="a.npz")


def test_an_archive_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE", 2**20)
    images = np.zeros((2**17, 4, 4), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", **(good() | {"x_train": images}))
    with pytest.raises(DataError, match=r"a\.npz: cannot be read .*its contents take 2,"):
        arrays(tmp_path, file="a.npz")

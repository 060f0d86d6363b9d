"""A data set of the user's own: both halves, in every form that they come in, and what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qtool import pipeline
from qtool.data.datasets import DATASETS
from qtool.data.loaders import make_loaders
from qtool.data.sources import DataSource, FileSplit, Split
from qtool.data.user_data import load_data
from qtool.errors import QtoolError
from qtool.settings.user_code import UserCode
from tests.kit import write_recipe

SETS = """
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def picture(index, size=8, channels=None):
    shape = (size, size) if channels is None else (size, size, channels)
    return ((np.arange(np.prod(shape)) * (index + 1)) % 256).astype(np.uint8).reshape(shape)


class Halved(torch.utils.data.Dataset):
    classes = ["cat", "dog", "owl"]

    def __init__(self, train, count: int = 6, kind: str = "array"):
        self.count, self.kind, self.first = count if train else 3, kind, 0 if train else 100

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        array = picture(self.first + index, channels=3)
        image = {
            "array": array,
            "pil": Image.fromarray(array),
            "tensor": torch.from_numpy(array).permute(2, 0, 1),
            "float": torch.from_numpy(array).permute(2, 0, 1) / 255.0,
        }[self.kind]
        return image, index % 3


class Named:
    def __init__(self, split, root=None):
        self.split, self.root = split, root

    def __len__(self):
        return {"train": 4, "val": 2, "holdback": 3}[self.split]

    def __getitem__(self, index):
        return picture(index), np.int64(index % 2)


def both(seed_of_order=0):
    items = [(picture(i), i % 2) for i in torch.randperm(10).tolist()]
    return items[:7], items[7:]


def mapping():
    return {"train": [(picture(0), 1.5)], "test": [(picture(1), 2)]}


def several():
    return [(picture(0), [0, 1, 1]), (picture(1), [0, 0, 0])], [(picture(2), [1, 0, 0])]


def files(root):
    paths = sorted(Path(root).glob("*.png"))
    return [(path, 0) for path in paths[:2]], [(str(path), 1) for path in paths[2:]]


def one():
    return [(picture(0), 0)]


def oblong():
    return [(np.zeros((8, 9), np.uint8), 0)], []


def unlike():
    return [(picture(0), 0), (picture(1, 9), 0)], []


def words():
    return [(picture(0), "cat")], []


def lonely():
    return [picture(0)], []


def text():
    return [({}, 0)], []


def wide():
    return [(np.zeros((8, 8), np.int64), 0)], []


def mixed(root):
    return [(picture(0), 0), ("a.png", 0)], []


def broken():
    class Half(list):
        def __getitem__(self, index):
            raise OSError("no such archive")

    return Half([1]), [1]
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., DataSource]:
    """Return a function that makes a source of a user's data set, with parameters."""
    (tmp_path / "sets.py").write_text(SETS)

    def made(name: str, root: Path | None = None, **params: Any) -> DataSource:
        load_data(f"sets.py:{name}", UserCode.beside(tmp_path / "r.yaml"), {})
        return DATASETS.build(f"sets.py:{name}", **params)(root or tmp_path)

    return made


def picture(index: int, size: int = 8, channels: int = 3) -> np.ndarray:
    values = np.arange(size * size * channels) * (index + 1) % 256
    return values.astype(np.uint8).reshape(size, size, channels)


@pytest.mark.parametrize("kind", ["array", "pil", "tensor", "float"])
def test_items_of_every_kind_are_the_same_images(
    kind: str, make: Callable[..., DataSource]
) -> None:
    source = make("Halved", kind=kind, count=5)
    assert isinstance(source.train, Split)
    expected = np.stack([picture(index) for index in range(5)]).transpose(0, 3, 1, 2)
    images = source.train.images.numpy()
    if kind == "float":
        np.testing.assert_array_equal(images, expected / np.float32(255))
        assert (source.mean, source.std) == ((0.0,) * 3, (1.0,) * 3)
    else:
        np.testing.assert_array_equal(images, expected)
        scaled = expected.astype(np.float64) / 255
        np.testing.assert_allclose(source.mean, scaled.mean((0, 2, 3)))
        np.testing.assert_allclose(source.std, scaled.std((0, 2, 3)))
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1]
    assert len(source.validation) == 3
    assert source.class_names == ("cat", "dog", "owl")
    assert (source.classes, source.image_size, source.pictures) == (3, 8, kind != "float")


def test_a_set_that_takes_split_is_asked_for_both(make: Callable[..., DataSource]) -> None:
    source = make("Named")
    assert (len(source.train), len(source.validation)) == (4, 2)
    assert (source.class_names, source.mean) == (("0", "1"), source.mean)
    other = make("Named", split=["val", "holdback"])
    assert (len(other.train), len(other.validation)) == (2, 3)


def test_a_split_that_is_drawn_is_the_same_each_time(make: Callable[..., DataSource]) -> None:
    state = torch.get_rng_state()
    one, two = (make("both") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(one.train, Split)
    assert isinstance(two.train, Split)
    assert torch.equal(one.train.images, two.train.images)
    drawn = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert one.train.labels.tolist() == [int(i) % 2 for i in drawn[:7]]


def test_labels_may_be_numbers_or_several(make: Callable[..., DataSource]) -> None:
    numbers = make("mapping")
    assert numbers.train.labels.tolist() == [1.5]
    assert (numbers.classes, numbers.class_names) == (1, ())
    several = make("several")
    assert several.train.labels.tolist() == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert (several.classes, several.class_names) == (3, ("0", "1", "2"))


def test_paths_are_read_as_image_files(make: Callable[..., DataSource], tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(picture(index, size=20 + index)).save(tmp_path / f"{index}.png")
    source = make("files", tmp_path)
    assert isinstance(source.train, FileSplit)
    loaders = make_loaders(
        source,
        batch_size=2,
        image_size=16,
        train_samples=None,
        seed=0,
        device=torch.device("cpu"),
        workers=0,
    )
    images, labels = next(loaders.validation.batches(0))
    assert (list(images.shape), labels.tolist()) == ([1, 3, 16, 16], [1])


WRONG = {
    "one": "sets.py:63: one gives no two halves; let it take train or split, or return",
    "oblong": "item 0 has 8 x 9 pixels; let it give square images, or paths, which qtool resizes",
    "unlike": "item 1 is torch.uint8 [1, 9, 9], unlike the first, torch.uint8 [1, 8, 8]",
    "words": "item 0 has the label 'cat'; a label is a number of a class, or 0 or 1 for each class",
    "lonely": "item 0 is no pair of an image and its label",
    "text": "item 0 has an image of dict; an image is a PIL.Image, an array, a tensor or a path",
    "wide": "item 0 is torch.int64 [1, 8, 8]; needed is uint8 [C, H, W], or floats",
    "mixed": "item 1 gives pixels or a path unlike the others",
    "broken": "sets.py:98: OSError: no such archive",
}


@pytest.mark.parametrize(("name", "why"), WRONG.items(), ids=WRONG.keys())
def test_a_mistake_says_where_and_what_would_be_right(
    name: str, why: str, make: Callable[..., DataSource]
) -> None:
    with pytest.raises(QtoolError) as caught:
        make(name)
    assert why in str(caught.value)
    assert "sets.py" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_run_on_ones_own_data_is_that_on_the_same_data_of_qtool(tmp_path: Path) -> None:
    text = """
from sklearn.datasets import load_digits
from qtool.data.sources import fixed_split

def digits(classes: int = 10):
    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype("uint8")
    halves = fixed_split(bunch.target.tolist(), 500)
    return [[(images[i], bunch.target[i]) for i in half.tolist()] for half in halves]
"""
    (tmp_path / "own.py").write_text(text)
    for name in ("own.py:digits", "digits"):
        recipe = write_recipe(tmp_path, {"data.name": name, "data.augment": False})
        pipeline.train(recipe, run_dir=tmp_path / f"run of {name}", device="cpu")
    one, two = (
        torch.load(tmp_path / f"run of {name}" / "checkpoint.pt", weights_only=True)["model"]
        for name in ("own.py:digits", "digits")
    )
    tensors = [key for key, value in one.items() if isinstance(value, torch.Tensor)]
    assert tensors
    assert all(torch.equal(one[key], two[key]) for key in tensors)

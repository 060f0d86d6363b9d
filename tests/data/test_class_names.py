"""What the classes of data sets are called, in the order of labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import FashionMNIST

from qtool.data.arrays import arrays
from qtool.data.class_names import class_names
from qtool.data.datasets import digits
from qtool.data.image_folder import image_folder
from qtool.data.synthetic import gaussian_teacher, linear_subspaces


def test_the_clothes_are_called_as_torchvision_does() -> None:
    assert list(class_names("fashion_mnist", 10)) == FashionMNIST.classes


@pytest.mark.parametrize(
    ("name", "classes", "places"),
    [
        ("mnist", 10, {0: "0", 9: "9"}),
        ("fashion_mnist", 10, {0: "T-shirt/top", 9: "Ankle boot"}),
        ("cifar10", 10, {0: "airplane", 3: "cat", 9: "truck"}),
        ("cifar100", 100, {0: "apple", 51: "mushroom", 99: "worm"}),
    ],
)
def test_published_names_stand_at_their_labels(
    name: str, classes: int, places: dict[int, str]
) -> None:
    names = class_names(name, classes)
    assert len(set(names)) == classes
    assert {place: names[place] for place in places} == places


def test_cifar_100_counts_its_classes_by_the_alphabet() -> None:
    assert list(class_names("cifar100", 100)) == sorted(class_names("cifar100", 100))


@pytest.mark.parametrize("labels", ["folders", "imagenet"])
def test_folders_name_classes_or_say_which_of_imagenet_they_are(
    labels: str, tmp_path: Path
) -> None:
    for folder in ("701_x", "000_y"):
        for index in range(2):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{index}.png")
    names = image_folder(tmp_path, labels=labels).class_names
    if labels == "folders":
        assert names == ("000_y", "701_x")
    else:
        assert (len(names), names[0], names[701]) == (1000, "tench", "parachute")


def test_numbers_name_the_classes_of_arrays_and_targets_have_no_names(tmp_path: Path) -> None:
    x, y = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 2, 4])
    x[0] = 255
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert arrays(tmp_path, file="a.npz").class_names == ("0", "1", "2", "3", "4")
    assert digits(tmp_path).class_names == tuple("0123456789")
    drawn = linear_subspaces(tmp_path, classes=3, dimension=12, subspace_dimension=2)
    assert drawn.class_names == ("0", "1", "2")
    assert gaussian_teacher(tmp_path, rows=4, columns=5).class_names == ()

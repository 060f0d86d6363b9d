"""Folders of image files: layouts, labels, and every way a folder can be wrong."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qtool.data.datasets import DATASETS
from qtool.data.image_folder import IMAGENETTE, image_folder
from qtool.data.sources import FileSplit
from qtool.errors import DataError


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(folder / f"{number}.png")


def names(split: object) -> list[tuple[str, Any]]:
    assert isinstance(split, FileSplit)
    return [
        (f"{path.parent.name}/{path.name}", label)
        for path, label in zip(split.paths, split.labels, strict=True)
    ]


def test_train_and_val_are_read_as_they_are(tmp_path: Path) -> None:
    for half, count in (("train", 2), ("val", 1)):
        write_images(tmp_path / "set" / half / "cat", count)
        write_images(tmp_path / "set" / half / "dog", count)
    (tmp_path / "set/train/cat/readme.txt").write_text("not an image")
    (tmp_path / "set/train/cat/._0.png").write_text("left by a file manager")
    source = image_folder(tmp_path, folder="set")
    assert names(source.train) == [
        ("cat/0.png", 0),
        ("cat/1.png", 0),
        ("dog/0.png", 1),
        ("dog/1.png", 1),
    ]
    assert names(source.validation) == [("cat/0.png", 0), ("dog/0.png", 1)]
    assert (source.classes, source.note) == (2, "2 classes: cat, dog")


def test_classes_missing_from_val_keep_the_labels_of_train(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 1)
    write_images(tmp_path / "train" / "b", 1)
    write_images(tmp_path / "val" / "b", 1)
    assert names(image_folder(tmp_path).validation) == [("b/0.png", 1)]


@pytest.mark.parametrize("inner", ["", "val", "train"])
def test_one_folder_of_classes_is_split_in_proportion(inner: str, tmp_path: Path) -> None:
    write_images(tmp_path / inner / "a", 10)
    write_images(tmp_path / inner / "b", 5)
    source = image_folder(tmp_path, validation_share=0.2)
    train, validation = names(source.train), names(source.validation)
    assert [label for _, label in validation] == [0, 0, 1]
    assert len(set(train) | set(validation)) == 15
    assert names(image_folder(tmp_path, validation_share=0.2).validation) == validation
    assert "12 training and 3 validation images" in source.note


def test_one_image_per_class_is_split_plainly(tmp_path: Path) -> None:
    for name in "abcde":
        write_images(tmp_path / name, 1)
    source = image_folder(tmp_path)
    assert (len(source.train), len(source.validation), source.classes) == (4, 1, 5)


@pytest.mark.parametrize(("share", "validation"), [(0.001, 1), (0.999, 3)])
def test_a_split_leaves_neither_half_empty(share: float, validation: int, tmp_path: Path) -> None:
    write_images(tmp_path / "a", 4)
    source = image_folder(tmp_path, validation_share=share)
    assert len(source.validation) == validation


def test_imagenet_labels_come_from_the_index_or_the_wnid_of_imagenette(tmp_path: Path) -> None:
    for name in ("007_n01514668", "n03888257", "12"):
        write_images(tmp_path / "train" / name, 1)
    write_images(tmp_path / "val" / "n01440764", 1)
    source = image_folder(tmp_path, labels="imagenet")
    assert names(source.train) == [
        ("007_n01514668/0.png", 7),
        ("12/0.png", 12),
        ("n03888257/0.png", 701),
    ]
    assert names(source.validation) == [("n01440764/0.png", 0)]
    assert source.classes == 1000


def test_a_thousand_wnids_are_the_classes_in_sorted_order(tmp_path: Path) -> None:
    for number in range(1000):
        folder = tmp_path / f"n{number * 7:08d}"
        folder.mkdir()
        (folder / "x.jpg").touch()
    source = image_folder(tmp_path, labels="imagenet")
    both = names(source.train) + names(source.validation)
    assert sorted(both) == [(f"n{number * 7:08d}/x.jpg", number) for number in range(1000)]


def test_the_classes_of_imagenette_are_the_published_indices() -> None:
    published = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert [IMAGENETTE[wnid] for wnid in sorted(IMAGENETTE)] == published


@pytest.mark.parametrize("name", ["n00000001", "dog", "1000_x", "7up"])
def test_a_folder_of_no_known_imagenet_class_is_refused(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / name, 2)
    with pytest.raises(DataError, match=f"class of {name}; start the name with the class index"):
        image_folder(tmp_path, labels="imagenet")


def test_wrong_folders_say_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: no such folder; data\.folder"):
        image_folder(tmp_path, folder="nothing")
    with pytest.raises(DataError, match="holds no folders; needed are train/ and val/"):
        image_folder(tmp_path)
    for name in "abcd":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no images in a, b, c, d; images end in"):
        image_folder(tmp_path)


LAYOUTS = [
    (["train", "val"], "val", []),
    (["training", "validation"], "validation", []),
    (["Train", "Val"], "Val", []),
    (["TRAIN", "dev"], "dev", []),
    (["train", "valid", "test"], "valid", ["test/ is there and is not used: SET/valid judges"]),
    (["train", "test"], "test", ["test/ judges, for there is no validation folder"]),
    (["train", "val", "extra"], "val", ["SET: not used: extra/"]),
]


@pytest.mark.parametrize("wrapped", ["", "archive"])
@pytest.mark.parametrize(("halves", "judge", "notes"), LAYOUTS)
def test_halves_are_known_by_the_names_that_people_give_them(
    halves: list[str], judge: str, notes: list[str], wrapped: str, tmp_path: Path
) -> None:
    base = tmp_path / wrapped if wrapped else tmp_path
    for half in halves:
        for name, count in (("cat", 3), ("dog", 2)):
            write_images(base / half / name, count)
    (tmp_path / "__MACOSX" / "train" / "cat").mkdir(parents=True)
    source = image_folder(tmp_path)
    assert isinstance(source.train, FileSplit)
    assert isinstance(source.validation, FileSplit)
    assert source.class_names == ("cat", "dog")
    assert {path.parents[1].name for path in source.train.paths} == {halves[0]}
    assert {path.parents[1].name for path in source.validation.paths} == {judge}
    said = [note.replace("SET", str(base)) for note in notes]
    assert source.note.splitlines() == ["2 classes: cat, dog", *said]


def test_a_half_by_two_names_is_refused(tmp_path: Path) -> None:
    for half in ("train", "val", "valid"):
        write_images(tmp_path / half / "cat", 1)
    with pytest.raises(DataError, match="both val/ and valid/ are there for validation"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    "halves", [("train", "valid"), ("Training", "test"), ("train", "val", "test")]
)
def test_halves_without_classes_are_no_classes(halves: tuple[str, ...], tmp_path: Path) -> None:
    for half in halves:
        write_images(tmp_path / half, 2)
    with pytest.raises(DataError, match=f"{halves[0]}/.* hold no folders of classes; needed is"):
        image_folder(tmp_path)


def test_one_class_leaves_nothing_to_tell_apart(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2)
    first = image_folder(tmp_path).note.splitlines()[0]
    assert first == "1 class: images; there is nothing to tell apart"


def test_a_class_may_be_called_test_or_train(tmp_path: Path) -> None:
    for name in ("test/deeper", "train", "bus"):
        write_images(tmp_path / name, 2)
    assert image_folder(tmp_path).class_names == ("bus", "test", "train")


def test_what_has_no_class_or_no_judge_is_said(tmp_path: Path) -> None:
    for half, name in (("train", "a"), ("train", "b"), ("train", "c"), ("val", "b")):
        write_images(tmp_path / half / name, 2)
    (tmp_path / "val" / "c").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "loose.PNG")
    source = image_folder(tmp_path)
    assert names(source.validation) == [("b/0.png", 1), ("b/1.png", 1)]
    assert source.note.splitlines() == [
        "3 classes: a, b, c",
        f"{tmp_path / 'val'}: no images of a, c",
        f"{tmp_path / 'train'}: 1 image lies beside the folders of classes, and none is used",
    ]


def test_many_classes_are_named_in_part(tmp_path: Path) -> None:
    for number in range(32):
        write_images(tmp_path / f"{number:02}", 1)
    first = image_folder(tmp_path).note.splitlines()[0]
    assert first == f"32 classes: {', '.join(f'{n:02}' for n in range(30))} and 2 more"


def test_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 1)
    with pytest.raises(DataError, match="holds one image"):
        image_folder(tmp_path)


def test_a_class_that_only_val_has_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 1)
    write_images(tmp_path / "val" / "b", 1)
    with pytest.raises(DataError, match="val: b not among the classes of the training images"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"validation_share": 1.0}, "1.0 is not less than 1.0"),
        ({"validation_share": 0.0}, "0.0 is not more than 0.0"),
        ({"labels": "imagenett"}, "unknown choice 'imagenett'; did you mean imagenet?"),
    ],
)
def test_wrong_parameters_are_found_without_data(params: dict[str, Any], message: str) -> None:
    assert [why for _, why in DATASETS.problems("image_folder", params)] == [message]

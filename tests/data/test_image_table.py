"""Image files whose classes a CSV says: its forms, and every way it can be wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qtool.data.fingerprint import fingerprint
from qtool.data.image_table import image_table
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import DataSource, FileSplit
from qtool.errors import DataError, RecipeError
from qtool.recipe.recipe import Recipe
from qtool.settings.section import check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images, of which h.png lies one folder down."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate("abcdefg"):
        Image.new("RGB", (8, 6), (30 * number, 0, 0)).save(tmp_path / "photos" / f"{name}.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "photos" / "more" / "h.png")
    return tmp_path


def read(folder: Path, text: str, **params: Any) -> DataSource:
    (folder / "labels.csv").write_text(text)
    given: dict[str, Any] = {"folder": "photos"} | params
    return image_table(folder, file="labels.csv", **given)


def pairs(split: object) -> list[tuple[str, Any]]:
    assert isinstance(split, FileSplit)
    labels = split.labels.tolist() if isinstance(split.labels, torch.Tensor) else split.labels
    return [(path.stem, label) for path, label in zip(split.paths, labels, strict=True)]


def both(source: DataSource) -> dict[str, Any]:
    return dict(pairs(source.train) + pairs(source.validation))


ONE = {"a": 0, "b": 1, "c": 2, "h": 0}
FORMS = {
    "names with suffix": "file,label\na.png,cat\nb.png,dog\nc.png,owl\nmore/h.png,cat\n",
    "as Kaggle has them": "id_code,diagnosis\na,cat\nb,dog\nc,owl\nh,cat\n",
    "the label first": "label;path\ncat;a.png\ndog;b.png\nowl;c.png\ncat;h.png\n",
    "no header": "a.png\tcat\nb.png\tdog\nc.png\towl\nh.png\tcat\n",
    "other machines' paths": "f,l\n/kaggle/input/a.png,cat\nX:\\b.png,dog\nphotos/c,owl\nh,cat\n",
    "a mark of order, spaces": "\ufefffile, label\na.png, cat\nb.png,dog\n\nc.png,owl\nh.png,cat\n",
    "a column for each": "file,cat,dog,owl\na,1,0,0\nb.png,0,1,0\nc,0,0.0,1.0\nh,1,,0\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_one_class_each_is_read_in_many_forms(form: str, folder: Path) -> None:
    source = read(folder, FORMS[form], validation_share=0.25)
    assert both(source) == ONE
    assert source.class_names == ("cat", "dog", "owl")
    assert (len(source.train), len(source.validation), source.classes) == (3, 1, 3)
    said = source.note.splitlines()
    assert said[0] == "3 classes: cat, dog, owl"
    assert "files from column" in said[1]
    assert "3 training and 1 validation images" in said[-1]


SEVERAL = {"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 0.0], "c": [0.0, 1.0, 0.0]}
FORMS_OF_SEVERAL = {
    "spaces": "image,tags\na,cat owl\nb,\nc,dog\n",
    "bars": "image,tags\na,owl|cat\nb,\nc,dog\n",
    "commas": 'image,tags\na,"owl, cat"\nb,\nc,dog\n',
    "rows": "image,tag\na,owl\nb,\nc,dog\na,cat\n",
    "columns": "filename,cat,dog,owl\na,1,0,1\nb,0,0,0\nc,0,1,0\n",
}


@pytest.mark.parametrize("form", FORMS_OF_SEVERAL)
def test_an_image_may_have_several_classes_or_none(form: str, folder: Path) -> None:
    source = read(folder, FORMS_OF_SEVERAL[form], validation_file="labels.csv", labels="several")
    assert dict(pairs(source.train)) == dict(pairs(source.validation)) == SEVERAL
    assert source.class_names == ("cat", "dog", "owl")


def loaders(source: DataSource, **more: Any) -> Loaders:
    given = {"batch_size": 2, "image_size": 8, "train_samples": None, "seed": 0, "workers": 0}
    return make_loaders(source, device=torch.device("cpu"), **given | more)


def test_batches_of_several_classes_have_a_row_of_targets_each(folder: Path) -> None:
    text = FORMS_OF_SEVERAL["columns"] + "d,1,1,0\n"
    source = read(folder, text, validation_file="labels.csv", labels="several")
    made = loaders(source)
    images, labels = next(iter(made.validation.batches(0)))
    assert (images.shape, labels.dtype) == ((2, 3, 8, 8), torch.float32)
    assert labels.tolist() == [SEVERAL["a"], SEVERAL["b"]]
    assert made.class_names == ("cat", "dog", "owl")
    assert [tuple(labels.shape) for _, labels in made.labelled_pictures()] == [(1, 3)] * 4
    assert fingerprint(made).train.labels != fingerprint(loaders(both_halves(folder))).train.labels
    held = loaders(source, holdout=0.25)
    assert (held.train.samples, held.holdout and held.holdout.samples) == (3, 1)


def both_halves(folder: Path) -> DataSource:
    text = FORMS_OF_SEVERAL["columns"] + "d,1,1,1\n"
    return read(folder, text, validation_file="labels.csv", labels="several")


def test_rows_may_say_what_they_are_for(folder: Path) -> None:
    text = "file,label,set\na,x,Train\nb,y,train\nc,x,valid\nd,y,test\ne,y,Train\n"
    source = read(folder, text)
    assert pairs(source.train) == [("a", 0), ("b", 1), ("e", 1)]
    assert pairs(source.validation) == [("c", 0)]
    assert "1 rows of test are not used" in source.note
    assert "no validation image is y" in source.note
    source = read(folder, text.replace("c,x,valid\n", ""))
    assert pairs(source.validation) == [("d", 1)]
    assert "rows of test judge, for none are of validation" in source.note


def test_whole_numbers_are_classes_in_their_order(folder: Path) -> None:
    source = read(folder, "file,label\na,10\nb,9\nc,100\nd,9\n")
    assert source.class_names == ("9", "10", "100")
    assert both(source) == {"a": 1, "b": 0, "c": 2, "d": 0}


def test_columns_are_chosen_where_several_could_be_meant(folder: Path) -> None:
    text = "file,age,label\na,61,x\nb,23,y\nc,61,y\n"
    with pytest.raises(DataError, match=r"which of age, label are the labels\? data.label_column"):
        read(folder, text)
    assert both(read(folder, text, label_column="label")) == {"a": 0, "b": 1, "c": 1}
    with pytest.raises(DataError, match=r"data.label_column: no column lable; there are file, age"):
        read(folder, text, label_column="lable")
    with pytest.raises(DataError, match="line 2: age is 61; needed is train, val or test"):
        read(folder, text, label_column="label", split_column="age")
    with pytest.raises(DataError, match="column age holds 61; needed are 0 and 1"):
        read(folder, text, label_column=["label", "age"][::-1])


WRONG = [
    ("", "is empty"),
    ("file\na\n", "has one column"),
    ("file,label\n", "has no row"),
    ("file,label\na,x,y\n", "line 2 has 3 cells, the first one 2"),
    ("file,file\na,x\n", "file: more than one column is called so"),
    ("file,label\nzz,x\n", "no column names image files that are there; the first row says zz, x"),
    ('file,label\n"a,x\n', "cannot be read as a table"),
    ("file,label\na,x\nzz,x\nyy.png,y\n", "2 rows are wrong\n  line 3: no image file zz\n  line 4"),
    ("file,label\na,x\nb,\n", "line 3: b has no label; data.labels: several"),
    ("file,label\na,x\nb,y\na,y\n", "line 4: a is y, and in line 2 x; data.labels: several"),
    ("file,cat,dog\na,1,1\nb,0,1\n", "line 2: a has cat, dog; data.labels: several takes any"),
    ("file,x,set\na,k,train\nb,l,val\n", "l not among the classes of the training images"),
    ("file,x,set\na,k,val\nb,l,test\n", "no row is of training"),
]


@pytest.mark.parametrize(("text", "why"), WRONG)
def test_what_a_table_says_wrongly_is_named(text: str, why: str, folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(folder, text)
    assert why in str(caught.value)
    assert str(folder / "labels.csv") in str(caught.value)


def test_files_that_are_no_tables_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such file; data\.file"):
        image_table(folder, file="gone.csv")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        image_table(folder, file="photos/a.png")


def test_bad_and_missing_files_are_left_out_where_that_is_wanted(folder: Path) -> None:
    (folder / "photos" / "b.png").write_bytes(b"no image")
    text = "file,label\na,x\nb,y\nc,y\nzz,y\nd,x\na,x\n"
    source = read(folder, text, bad_files="skip")
    assert sorted(both(source)) == ["a", "c", "d"]
    assert "1 rows are left out: line 5: no image file zz" in source.note
    assert "1 of 4 files cannot be read and are left out" in source.note
    assert "1 rows repeat others and are left out" in source.note


def test_several_classes_need_a_loss_for_them() -> None:
    recipe: dict[str, Any] = {
        "model": {"name": "lenet5"},
        "data": {"name": "image_table", "file": "labels.csv", "labels": "several"},
        "training": {"epochs": 1, "learning_rate": 0.1},
    }
    with pytest.raises(RecipeError, match=r"training.loss: .* choose binary_cross_entropy"):
        check(Recipe, recipe, "r.yaml")
    recipe["training"]["loss"] = "binary_cross_entropy"
    assert check(Recipe, recipe, "r.yaml").data.several

"""The folder of data sets for another's recipe: nothing outside is read, wherever links lead."""

from pathlib import Path
from shutil import copytree

import pytest
from PIL import Image

from qtool.data.datasets import DATASETS
from qtool.data.image_folder import image_folder
from qtool.data.root import DataRoot
from qtool.data.sources import FileSplit
from qtool.errors import DataError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two images of each of two classes, and a secret beside them."""
    for name in ("data/a/1", "data/a/2", "data/b/1", "data/b/2", "secret/1", "secret/2"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "data"


def read(root: Path, folder: str = ".", *, chosen: bool = True) -> list[str]:
    source = image_folder(DataRoot(root, confined=True, chosen=chosen), folder=folder)
    assert isinstance(source.train, FileSplit)
    assert isinstance(source.validation, FileSplit)
    return sorted(str(p.relative_to(root)) for p in source.train.paths + source.validation.paths)


def test_what_lies_in_the_folder_is_read(photographs: Path) -> None:
    (photographs / "a" / "3.png").symlink_to(photographs / "b" / "1.png")
    assert read(photographs) == ["a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"]


def test_a_folder_that_is_a_link_itself_is_read(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photographs)
    assert len(read(tmp_path / "link")) == 4


@pytest.mark.parametrize("folder", ["..", "/", "../secret", "a/../../secret"])
def test_a_name_that_leads_out_is_refused(folder: str, photographs: Path) -> None:
    with pytest.raises(DataError, match=r"leads out of .*; --data-root FOLDER says where"):
        read(photographs, folder)


@pytest.mark.parametrize("link", ["a/3.png", "c", "train", "d/deep/1.png"])
def test_a_link_that_leads_out_is_refused(link: str, photographs: Path, tmp_path: Path) -> None:
    place = photographs / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "secret" / "1.png" if place.suffix else tmp_path / "secret")
    if link == "train":
        (tmp_path / "secret" / "a").mkdir()
    with pytest.raises(DataError, match="leads out of"):
        read(photographs)


def test_links_in_a_circle_are_refused(photographs: Path) -> None:
    (photographs / "c").symlink_to(photographs / "c")
    with pytest.raises(DataError, match="leads out of"):
        read(photographs, "c")


def test_a_folder_that_nobody_chose_is_not_looked_into(photographs: Path) -> None:
    with pytest.raises(DataError, match="named by a recipe that is not yours"):
        read(photographs, chosen=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_published_data_are_neither_downloaded_nor_read_through_links(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtool.data.official._download", None)
    root = tmp_path / "root"
    with pytest.raises(DataError, match="nothing is downloaded for a recipe that is not yours"):
        DATASETS[name](DataRoot(root, confined=True, chosen=False))
    assert not root.exists()
    tops = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
    tops |= {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    root.mkdir()
    (root / tops[name]).symlink_to(copytree(Path(__file__).parent, tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="leads out of"):
        DATASETS[name](DataRoot(root, confined=True))


def test_ones_own_data_may_lie_behind_links(photographs: Path, tmp_path: Path) -> None:
    (photographs / "c").symlink_to(tmp_path / "secret")
    assert image_folder(photographs).classes == image_folder(DataRoot(photographs)).classes == 3

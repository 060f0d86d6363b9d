"""Files that are no images: all named when the first is met, or left out."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from qtool.data import bad_files
from qtool.data.bad_files import Unread, all_named, unreadable
from qtool.data.image_folder import image_folder
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import FileSplit
from qtool.errors import DataError

BAD = ("train/cat/2.jpg", "train/dog/1.jpg", "val/dog/0.jpg")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Four photographs of each class, two to judge by; a truncated, an empty and an HTML file."""
    for half, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / half / name).mkdir(parents=True)
            for number in range(count):
                noise = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
                Image.fromarray(noise).save(tmp_path / half / name / f"{number}.jpg")
    truncated, empty, page = (tmp_path / name for name in BAD)
    truncated.write_bytes(truncated.read_bytes()[:-200])
    empty.write_bytes(b"")
    page.write_bytes(b"<html>404</html>")
    return tmp_path


def load(root: Path, *, workers: int = 0, bad: bad_files.BadFiles = "refuse") -> Loaders:
    return make_loaders(
        image_folder(root, bad_files=bad),
        batch_size=2,
        image_size=16,
        train_samples=None,
        seed=0,
        device=torch.device("cpu"),
        workers=workers,
    )


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_first_bad_file_names_all_of_both_halves(workers: int, photographs: Path) -> None:
    loaders = load(photographs, workers=workers)
    passes = (loaders.train, loaders.validation)
    for batches in passes if not workers else passes[:1]:
        with pytest.raises(DataError) as caught:
            list(batches.batches(0))
        first, *lines = str(caught.value).splitlines()
        assert "3 of 12 files cannot be read as images; image_folder and" in first
        assert "data.bad_files: skip" in first
        named = sorted(line.split(":")[0].strip() for line in lines)
        assert named == [str(photographs / name) for name in BAD]
        assert f"{photographs / BAD[1]}: cannot be read as an image, for it is empty" in str(
            caught.value
        )
    with pytest.raises(DataError, match=r"1 of 4|0\.jpg: cannot be read as an image of JPEG"):
        list(loaders.validation_pictures())


def test_bad_files_are_left_out_with_their_count_and_names(photographs: Path) -> None:
    loaders = load(photographs, bad="skip")
    split = loaders.train_split
    assert isinstance(split, FileSplit)
    left = [str(path.relative_to(photographs)) for path in split.paths]
    rest = ["train/cat/0.jpg", "train/cat/1.jpg", "train/cat/3.jpg"]
    assert left == [*rest, "train/dog/0.jpg", "train/dog/2.jpg", "train/dog/3.jpg"]
    assert split.labels == [0, 0, 0, 1, 1, 1]
    assert loaders.validation.samples == 3
    names = ", ".join(str(photographs / name) for name in BAD)
    assert f"3 of 12 files cannot be read and are left out: {names}" in loaders.note
    assert sum(len(labels) for _, labels in loaders.train.batches(0)) == 6


def test_a_class_whose_files_are_all_bad_is_refused(photographs: Path) -> None:
    for number in range(4):
        (photographs / "train/cat" / f"{number}.jpg").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="train: no image of cat can be read"):
        load(photographs, bad="skip")


def test_a_file_that_changes_is_looked_at_again(photographs: Path) -> None:
    path = photographs / BAD[0]
    assert list(unreadable([path])) == [path]
    Image.new("RGB", (8, 8)).save(path)
    assert not unreadable([path])
    path.unlink()
    assert list(unreadable([path])) == [path]


def test_a_long_list_ends_with_how_many_more_there_are(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:03}.png" for number in range(120)]
    lines = str(all_named(Unread(paths[0], "the first"), paths)).splitlines()
    assert lines[0].startswith("120 of 120 files cannot be read")
    assert (len(lines), lines[-1].strip()) == (102, "and 20 more")


def test_a_search_for_a_message_ends_in_time(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 5.0, 5.0])
    monkeypatch.setattr(bad_files, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bad_files, "AT_ONCE", 1)
    paths = [photographs / name for name in BAD]
    assert list(unreadable(paths, seconds=3)) == paths[:1]

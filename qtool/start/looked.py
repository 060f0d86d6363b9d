"""What a folder of images holds: its classes, its images and their sizes, and what is broken.

Folders of classes are read as `image_folder` does. A CSV counts where folders tell no classes.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from qtool.data.bad_files import unreadable
from qtool.data.image_folder import image_folder
from qtool.data.image_table import image_table
from qtool.data.layouts import kind_of, layout_of, subfolders
from qtool.data.sources import DataSource, FileSplit
from qtool.data.tables import KIND_OF
from qtool.errors import DataError
from qtool.images.files import opened

MOST_MEASURED = 2000  # images, evenly over the set
BETWEEN_LABELS = "|;"  # in a cell of a CSV
SEVERAL = {"labels": "several"}
READERS: dict[str, Callable[..., DataSource]] = {
    "image_folder": image_folder,
    "image_table": image_table,
}


@dataclass(frozen=True)
class Looked:
    """A folder of images, every one of which was opened.

    Attributes:
        folder: as it was given.
        reader: the data set that reads it.
        params: its parameters.
        source: its images without those that cannot be read.
        counts: of images by class, in the order of labels.
        bad: files that cannot be read.
        side: the shorter side of a usual image, pixels.
    """

    folder: Path
    reader: str
    params: dict[str, str]
    source: DataSource
    counts: dict[str, int]
    bad: list[Path]
    side: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many images there are to train on and to judge by."""
        return len(self.source.train), len(self.source.validation)

    @property
    def several(self) -> bool:
        """Tell whether an image may have several labels."""
        return self.params.get("labels") == "several"


def look_at(folder: Path) -> Looked:
    """Open every image in a folder, which is laid out in any way that qtool reads.

    Raises:
        DataError: If it holds no images of classes, or none of a class can be read.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; give a folder that has a folder of images per class")
    reader, params, source = _read(folder)
    bad = list(unreadable([path for half in _halves(source) for path in half.paths]))
    if bad:
        params |= {"bad_files": "skip"}
        source = READERS[reader](folder, **params)
    halves = _halves(source)
    side = _usual_side([path for half in halves for path in half.paths])
    return Looked(folder, reader, params, source, _counts(source, halves), bad, side)


def _read(folder: Path) -> tuple[str, dict[str, str], DataSource]:
    """Return what reads a folder, by which parameters, and what it finds."""
    tables = sorted(folder.glob("*.csv"))
    ways = _ways(tables) if tables else _ways_of_halves(folder)
    if _tells_classes(folder) or not (ways := list(ways)):
        return "image_folder", {}, image_folder(folder)
    errors: list[DataError] = []
    for params in ways:
        for more in ({}, {"bad_files": "skip"}):
            try:
                return "image_table", params | more, _table(folder, params | more)
            except DataError as error:
                errors.append(error)
    raise errors[0]


def _table(folder: Path, params: dict[str, str]) -> DataSource:
    """Read a CSV; with one label each, unless cells have more.

    Raises:
        DataError: If it cannot be read, or is of several labels and `params` are not.
    """
    source = READERS["image_table"](folder, **params)
    names = "".join(source.class_names)
    if "labels" not in params and any(sign in names for sign in BETWEEN_LABELS):
        raise DataError(f"{folder}: a cell has several labels")
    return source


def _tells_classes(folder: Path) -> bool:
    """Tell whether folders have halves of classes, or are classes: several, not called halves."""
    try:
        if layout_of(folder).train != folder:
            return True
    except DataError:  # halves, and no folders of classes in them
        return False
    names = subfolders(folder)
    return len(names) > 1 and not any(name.lower() in KIND_OF for name in names)


def _ways(tables: list[Path]) -> Iterator[dict[str, str]]:
    """Yield parameters that CSV files may be read by, the likeliest first."""
    kinds = {KIND_OF.get(path.stem.lower().split("_")[0], path.stem): path.name for path in tables}
    judges = [kinds[kind] for kind in ("validation", "test") if kind in kinds]
    for file in [kinds["train"]] if "train" in kinds else [path.name for path in tables]:
        for judge in [*judges, None] if "train" in kinds else [None]:
            own = {"file": file} | ({} if judge is None else {"validation_file": judge})
            yield own
            yield own | SEVERAL


def _ways_of_halves(folder: Path) -> Iterator[dict[str, str]]:
    """Yield parameters for CSV files that lie in the folders of halves, one in each."""
    kinds: dict[str, str] = {}
    for name in subfolders(folder):
        if (kind := kind_of(name)) and len(tables := sorted((folder / name).glob("*.csv"))) == 1:
            kinds[kind] = tables[0].relative_to(folder).as_posix()
    judge = kinds.get("validation") or kinds.get("test")
    if "train" in kinds and judge:
        own = {"file": kinds["train"], "validation_file": judge}
        yield own
        yield own | SEVERAL


def _counts(source: DataSource, halves: list[FileSplit]) -> dict[str, int]:
    """Return how many images each class has."""
    totals: Counter[int] = Counter()
    for half in halves:
        labels = torch.as_tensor(half.labels)
        each = labels.sum(0) if labels.ndim == 2 else labels.bincount()
        totals.update(dict(enumerate(int(count) for count in each)))
    return {name: totals[index] for index, name in enumerate(source.class_names)}


def _halves(source: DataSource) -> list[FileSplit]:
    return [half for half in (source.train, source.validation) if isinstance(half, FileSplit)]


def _usual_side(paths: list[Path]) -> int:
    """Return the median of the shorter sides of images, pixels."""
    sides = []
    for path in paths[:: -(-len(paths) // MOST_MEASURED)]:
        with opened(path) as image:
            sides.append(min(image.size))
    return round(median(sides))


def path_from(path: Path, folder: Path) -> str:
    """Return a path as a recipe in a folder says it: relative where it lies in that folder."""
    inner, outer = path.resolve(), folder.resolve()
    if inner.is_relative_to(outer):
        return os.path.relpath(inner, outer)
    return str(inner)

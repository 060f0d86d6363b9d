"""What a folder of images holds: its classes, its images and their sizes, and what is broken."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qtool.data.bad_files import unreadable
from qtool.data.image_folder import image_folder
from qtool.data.sources import DataSource, FileSplit
from qtool.errors import DataError
from qtool.images.files import opened

MOST_MEASURED = 2000  # images, evenly over the set


@dataclass(frozen=True)
class Looked:
    """A folder of images, every one of which was opened.

    Attributes:
        folder: as it was given.
        source: its images without those that cannot be read.
        counts: of images by class, in the order of labels.
        bad: files that cannot be read.
        side: the shorter side of a usual image, pixels.
    """

    folder: Path
    source: DataSource
    counts: dict[str, int]
    bad: list[Path]
    side: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many images there are to train on and to judge by."""
        return len(self.source.train), len(self.source.validation)


def look_at(folder: Path) -> Looked:
    """Open every image in a folder, which is laid out in any way that `image_folder` reads.

    Raises:
        DataError: If it holds no images of classes, or none of a class can be read.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; give a folder that has a folder of images per class")
    whole = image_folder(folder)
    bad = list(unreadable([path for half in _halves(whole) for path in half.paths]))
    source = image_folder(folder, bad_files="skip") if bad else whole
    halves = _halves(source)
    labels = Counter(label for half in halves for label in half.labels)
    counts = {name: labels[index] for index, name in enumerate(source.class_names)}
    side = _usual_side([path for half in halves for path in half.paths])
    return Looked(folder, source, counts, bad, side)


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

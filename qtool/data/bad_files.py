"""Image files that cannot be read: all of them found at once, to be named or left out.

A file is read to its end, so that one cut short is found, too; JPEGs at an eighth of their size,
which reads as much of the file in less time.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Literal

import torch
from PIL.JpegImagePlugin import JpegImageFile

from qtool.data.layouts import listed
from qtool.data.sources import FileSplit
from qtool.data.worker_life import usable_cores
from qtool.errors import DataError
from qtool.images.files import decoded, opened

SECONDS = 120  # that a search may take which only makes a message longer
AT_ONCE = 256  # files
MOST_KEPT = 100_000  # files that were looked at in this process
MOST_LINES = 100  # of a message
EIGHTH = 8
BadFiles = Literal["refuse", "skip"]


@dataclass(frozen=True)
class Unread:
    """A file that could not be read, and the sentence that says so, with its name."""

    path: Path
    why: str


def unreadable(paths: Sequence[Path], *, seconds: float | None = None) -> dict[Path, str]:
    """Return which files cannot be read as images, in their order, each with why.

    Args:
        paths: of image files.
        seconds: after which no more are looked at; None looks at all.
    """
    start = monotonic()
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(usable_cores()) as threads:  # Pillow decodes without the lock
        for first in range(0, len(paths), AT_ONCE):
            if seconds is not None and monotonic() - start > seconds:
                break
            group = paths[first : first + AT_ONCE]
            reasons = zip(group, threads.map(_why_not, group), strict=True)
            found |= {path: why for path, why in reasons if why}
    return found


def skip_unreadable(
    train: FileSplit, validation: FileSplit | None
) -> tuple[FileSplit, FileSplit | None, list[str]]:
    """Return the halves without the files that cannot be read, and what is to be said of those."""
    halves = [train] if validation is None else [train, validation]
    paths = [path for half in halves for path in half.paths]
    if not (bad := unreadable(paths)):
        return train, validation, []
    kept = [
        half.subset(
            torch.tensor([i for i, path in enumerate(half.paths) if path not in bad]).long()
        )
        for half in halves
    ]
    few = listed(list(map(str, bad)))
    said = f"{len(bad):,} of {len(paths):,} files cannot be read and are left out: {few}"
    return kept[0], None if validation is None else kept[1], [said]


def all_named(first: Unread, files: Iterable[Path]) -> DataError:
    """Return the error of a file that could not be read, which names all others like it.

    Args:
        first: the file.
        files: of the whole data set.
    """
    paths = list(files)
    found = {first.path: first.why} | unreadable(paths, seconds=SECONDS)
    lines = list(found.values())
    hint = "image_folder and image_table leave such files out with data.bad_files: skip"
    if len(lines) == 1:
        return DataError(f"{lines[0]}; {hint}")
    more = [f"and {len(lines) - MOST_LINES:,} more"] if len(lines) > MOST_LINES else []
    title = f"{len(lines):,} of {len(paths):,} files cannot be read as images; {hint}"
    return DataError("\n  ".join([title, *lines[:MOST_LINES], *more]))


def _why_not(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path}: cannot be read as an image (no such file)"
    return _why_not_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(MOST_KEPT)
def _why_not_of(path: Path, *when: int) -> str:
    """Return why a file cannot be read, "" where it can; `when` tells its states apart."""
    del when
    try:
        with opened(path) as image:
            if isinstance(image, JpegImageFile):
                image.draft(image.mode, (image.width // EIGHTH, image.height // EIGHTH))
            decoded(image, path)
    except DataError as error:
        return str(error)
    return ""

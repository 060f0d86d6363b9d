"""What data were, in a few words: a run keeps it, and says what has changed when it goes on.

Of images in memory the contents count; of image files their names, labels and sizes, without
opening one. Where the folder of data lies does not matter.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from qtool.data.loaders import Loaders
from qtool.data.sources import FileSplit, Split
from qtool.graph.exact import sha256_of_numbers
from qtool.reports.result import Result

SIZES = 10_000  # files of a half that are asked for their size: on a network that takes its time


class Half(Result):
    """Training or validation images."""

    images: int
    shape: list[int] | None = None
    """Of one in memory, [C, H, W]."""
    contents: str = ""
    """SHA-256 of images in memory."""
    labels: str
    """SHA-256."""
    names: str = ""
    """SHA-256 of the files' names, each with its folder."""
    sizes: str = ""
    """SHA-256 of the files' sizes, of SIZES at most, evenly over all."""


class Fingerprint(Result):
    """What a run was trained and judged on."""

    classes: int
    class_names: list[str]
    train: Half
    validation: Half
    holdout: Half | None = None
    """Of training images, which are not among `train`; absent where none are held out."""


def fingerprint(data: Loaders) -> Fingerprint:
    """Return what data are.

    Raises:
        ValueError: If the loaders do not know what they are made of.
    """
    if data.train_split is None or data.validation_split is None:
        raise ValueError("these loaders were not made by make_loaders")
    held = {} if data.holdout_split is None else {"holdout": _half(data.holdout_split)}
    return Fingerprint(
        classes=data.classes,
        class_names=list(data.class_names),
        train=_half(data.train_split),
        validation=_half(data.validation_split),
        **held,
    )


def digest_of_images(data: Loaders) -> str:
    """Return what validation images and labels are, in their order, in one SHA-256.

    Raises:
        ValueError: If the loaders do not know what they are made of.
    """
    split = data.validation_split
    if split is None:
        raise ValueError("these loaders were not made by make_loaders")
    half = _half(split)
    return _sha256(iter((half.contents or half.names, half.labels)))


def changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Return what of data has changed, one line each."""
    found = []
    if before.classes != now.classes:
        found.append(f"{before.classes} classes before, {now.classes} now")
    elif before.class_names != now.class_names:
        pairs = zip(before.class_names, now.class_names, strict=False)
        was, is_now = next((pair for pair in pairs if pair[0] != pair[1]), ("some", "others"))
        found.append(f"names of classes: {was} before, {is_now} now")
    for name, was, other in (
        ("training", before.train, now.train),
        ("validation", before.validation, now.validation),
    ):
        found += [f"{name} images: {what}" for what in _changes_of(was, other)]
    return found


def _changes_of(before: Half, now: Half) -> Iterator[str]:
    if before.images != now.images:
        yield f"{before.images:,} before, {now.images:,} now"
    elif before.shape != now.shape:
        yield f"of shape {before.shape} before, {now.shape} now"
    else:
        kinds = {
            "contents": "other contents",
            "names": "other names of files",
            "sizes": "files of other sizes",
            "labels": "other labels",
        }
        yield from (
            said for key, said in kinds.items() if getattr(before, key) != getattr(now, key)
        )


def _half(split: Split | FileSplit) -> Half:
    if isinstance(split, Split):
        return Half(
            images=len(split),
            shape=list(split.images.shape[1:]),
            contents=sha256_of_numbers(split.images),
            labels=sha256_of_numbers(split.labels),
        )
    chosen = split.paths[:: -(-len(split.paths) // SIZES)]
    return Half(
        images=len(split),
        labels=sha256_of_numbers(torch.as_tensor(split.labels)),
        names=_sha256(f"{path.parent.name}/{path.name}" for path in split.paths),
        sizes=_sha256(str(_size(path)) for path in chosen),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # who reads it says so
        return -1


def _sha256(lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()

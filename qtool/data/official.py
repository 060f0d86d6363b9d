"""Data sets in torchvision's layout, downloaded where they are missing and wanted."""

import contextlib
import io
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision import datasets
from torchvision.datasets import CIFAR10, MNIST

from qtool.data.root import DataRoot
from qtool.data.sources import Split
from qtool.errors import DataError
from qtool.files.scratch import scratch_beside, sweep_beside

Official = type[MNIST] | type[CIFAR10]  # torchvision's classes; others derive from these two

DOWNLOAD_TIMEOUT = 15  # seconds without an answer before a download is given up


def official(name: str, known: str, root: Path | DataRoot, example: str) -> tuple[Split, Split]:
    """Read a data set in torchvision's layout, downloading it where it is missing and wanted.

    Args:
        name: The data set's name in recipes.
        known: torchvision's name for it.
        root: Folder of data sets.
        example: One of the files expected under it.

    Raises:
        DataError: If it is neither there nor to be had, or its files are damaged.
    """
    kind: Official = getattr(datasets, known)
    allowed = DataRoot.of(root)
    where = allowed.path / example
    if allowed.confined:
        top = allowed.path / Path(example).parts[0]
        allowed.all_inside([allowed.inside(top), *top.rglob("*")])
    try:
        return _read_halves(kind, allowed.path)
    except RuntimeError as error:
        if "not found" not in str(error):
            raise _damaged(name, where) from error
    # A damaged file fails in torchvision's parsing, with whatever error comes first.
    except Exception as error:
        raise _damaged(name, where) from error
    if allowed.confined:
        raise DataError(
            f"{name}: not found or incomplete, and nothing is downloaded for a recipe that is not "
            f"yours; expected is torchvision's layout, such as {where}; --data-root FOLDER says "
            "which folder holds it"
        )
    _download(name, kind, allowed.path, where)
    try:
        return _read_halves(kind, allowed.path)
    except Exception as error:
        raise _damaged(name, where) from error


def _damaged(name: str, where: Path) -> DataError:
    return DataError(f"{name}: the files in {where.parent} are damaged; delete them and run again")


def _read_halves(kind: Official, root: Path) -> tuple[Split, Split]:
    train, validation = kind(root, train=True), kind(root, train=False)
    return _to_split(train), _to_split(validation)


def _to_split(half: MNIST | CIFAR10) -> Split:
    images = torch.as_tensor(half.data)
    labels = torch.as_tensor(half.targets, dtype=torch.int64)
    if len(images) != len(labels) or images.dtype != torch.uint8:
        raise ValueError("images and labels do not belong together")
    grey = images.ndim == 3
    channels_first = images.unsqueeze(1) if grey else images.permute(0, 3, 1, 2)
    return Split(channels_first.contiguous(), labels)


def _download(name: str, kind: Official, root: Path, where: Path) -> None:
    """Download into a folder of its own, then move: an interrupted download leaves no half file."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        download = root / f"{name}.download"
        sweep_beside(download)
        with scratch_beside(download) as staging, _quiet():
            _copy_archives(kind, root, staging)
            kind(staging, train=True, download=True)
            _move_files(staging, root)
    # urllib, http, ssl, tarfile and torchvision each raise errors of their own.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{name}: not found or incomplete, and it could not be downloaded ({reason[-1]}); "
            f"expected is torchvision's layout, such as {where}; give the folder "
            "that holds it by --data-root, data.root or the environment variable QTOOL_DATA"
        ) from error


def _copy_archives(kind: Official, root: Path, staging: Path) -> None:
    """Offer torchvision the archives the user already has, so that it need not download them."""
    if issubclass(kind, CIFAR10):
        names = [kind.filename]
    else:
        names = [f"{kind.__name__}/raw/{archive}" for archive, _ in kind.resources]
    for name in names:
        if (root / name).is_file():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes((root / name).read_bytes())


def _move_files(source: Path, target: Path) -> None:
    for path in [p for p in source.rglob("*") if p.is_file()]:
        moved = target / path.relative_to(source)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.replace(moved)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torchvision's prints, bars and warnings away, and its connections from hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)

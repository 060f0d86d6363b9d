"""Data sets a recipe chooses from.

Each takes the folder of data sets and, as keyword-only arguments, its recipe parameters, and
returns its images with what is known about them. To add one, write a function here, decorate it,
and write its row in `qtool.data.sources.FACTS`.
"""

import contextlib
import io
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from qtool.data.arrays import arrays, read_npz
from qtool.data.image_folder import image_folder
from qtool.data.image_table import image_table
from qtool.data.root import DataRoot
from qtool.data.sources import DataSource, Split, channel_statistics, fixed_split, make_source
from qtool.data.synthetic import gaussian_teacher, linear_subspaces
from qtool.errors import DataError
from qtool.files.scratch import scratch_beside, sweep_beside
from qtool.registry import Registry

DATASETS: Registry[Callable[..., DataSource]] = Registry("data set")

Official = type[MNIST] | type[CIFAR10]  # torchvision's classes; others derive from these two

DOWNLOAD_TIMEOUT = 15  # seconds without an answer before a download is given up
DIGITS_VALIDATION = 500  # images


class _Digits(Protocol):
    """What scikit-learn gives."""

    images: np.ndarray  # float64 [N, 8, 8], whole numbers 0..16
    target: np.ndarray  # [N], classes


def default_root() -> Path:
    """Return the folder of data sets: $QTOOL_DATA, or ~/.cache/qtool/data."""
    chosen = os.environ.get("QTOOL_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "qtool" / "data"


@DATASETS.add
def digits(root: Path | DataRoot) -> DataSource:
    """Read scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,297 to train, 500 to judge.

    Source: E. Alpaydin and C. Kaynak, 1998, UCI Optical Recognition of Handwritten Digits.
    """
    # scikit-learn takes a second to load, and only this data set comes with it.
    from sklearn.datasets import load_digits

    bunch = cast(_Digits, load_digits())
    sixteenths = torch.from_numpy(bunch.images)
    whole = Split(
        (sixteenths * (255 / 16)).round().to(torch.uint8).unsqueeze(1),
        torch.from_numpy(bunch.target).to(torch.int64),
    )
    train_indices, held_out = fixed_split(whole.labels.tolist(), DIGITS_VALIDATION)
    train = whole.subset(train_indices)
    mean, std = channel_statistics(train.images)
    return make_source("digits", train, whole.subset(held_out), mean=mean, std=std)


@DATASETS.add
def mnist(root: Path | DataRoot) -> DataSource:
    """Read the handwritten digits of LeCun et al., 1998: 60,000 to train, 10,000 to judge."""
    train, validation = _official("mnist", MNIST, root, "MNIST/raw/train-images-idx3-ubyte")
    return make_source("mnist", train, validation)


@DATASETS.add
def fashion_mnist(root: Path | DataRoot) -> DataSource:
    """Read the pictures of clothes of Xiao et al., 2017, arXiv:1708.07747: 60,000 and 10,000."""
    train, validation = _official(
        "fashion_mnist", FashionMNIST, root, "FashionMNIST/raw/train-images-idx3-ubyte"
    )
    return make_source("fashion_mnist", train, validation)


@DATASETS.add
def cifar10(root: Path | DataRoot) -> DataSource:
    """Read the 10-class photographs of Krizhevsky, 2009: 50,000 to train, 10,000 to judge.

    Where torchvision's folder is missing but cifar10.npz is there, that file is read, however
    many of the images it holds.
    """
    where = DataRoot.of(root)
    packed = where.path / "cifar10.npz"
    if not packed.is_file() or (where.path / CIFAR10.base_folder).is_dir():
        train, validation = _official("cifar10", CIFAR10, root, "cifar-10-batches-py/data_batch_1")
        return make_source("cifar10", train, validation)
    train, validation = read_npz(where.inside(packed))
    shape = list(train.images.shape[1:])
    largest = int(max(train.labels.max(), validation.labels.max()))
    if shape != [3, 32, 32] or largest > 9:
        raise DataError(
            f"{packed}: holds images [C, H, W] = {shape} with labels up to {largest}; CIFAR-10 has "
            "[3, 32, 32] and labels up to 9 (data.name: arrays reads other files)"
        )
    note = (
        f"cifar10.npz holds {len(train):,} training and {len(validation):,} test images "
        "(the whole of CIFAR-10: 50,000 and 10,000)"
    )
    return make_source("cifar10", train, validation, note=note)


@DATASETS.add
def cifar100(root: Path | DataRoot) -> DataSource:
    """Read the 100-class photographs of Krizhevsky, 2009: 50,000 to train, 10,000 to judge."""
    train, validation = _official("cifar100", CIFAR100, root, "cifar-100-python/train")
    return make_source("cifar100", train, validation)


for further in (image_folder, image_table, arrays, gaussian_teacher, linear_subspaces):
    DATASETS.add(further)


def _official(
    name: str, kind: Official, root: Path | DataRoot, example: str
) -> tuple[Split, Split]:
    """Read a data set in torchvision's layout, downloading it where it is missing and wanted.

    Args:
        name: The data set's name in recipes.
        kind: torchvision's class.
        root: Folder of data sets.
        example: One of the files expected under it.

    Raises:
        DataError: If it is neither there nor to be had, or its files are damaged.
    """
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

"""Data sets a recipe chooses from.

Each takes the folder of data sets and, as keyword-only arguments, its recipe parameters, and
returns its images with what is known about them. To add one, write a function here, decorate it,
and write its row in `qtool.data.sources.FACTS`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from qtool.data.arrays import arrays, read_npz
from qtool.data.image_folder import image_folder
from qtool.data.image_table import image_table
from qtool.data.root import DataRoot
from qtool.data.sources import DataSource, Split, channel_statistics, fixed_split, make_source
from qtool.data.synthetic import gaussian_teacher, linear_subspaces
from qtool.errors import DataError
from qtool.registry import Registry

DATASETS: Registry[Callable[..., DataSource]] = Registry("data set")

DIGITS_VALIDATION = 500  # images
CIFAR10_FOLDER = "cifar-10-batches-py"  # torchvision's


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
    train, validation = _official("mnist", "MNIST", root, "MNIST/raw/train-images-idx3-ubyte")
    return make_source("mnist", train, validation)


@DATASETS.add
def fashion_mnist(root: Path | DataRoot) -> DataSource:
    """Read the pictures of clothes of Xiao et al., 2017, arXiv:1708.07747: 60,000 and 10,000."""
    train, validation = _official(
        "fashion_mnist", "FashionMNIST", root, "FashionMNIST/raw/train-images-idx3-ubyte"
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
    if not packed.is_file() or (where.path / CIFAR10_FOLDER).is_dir():
        train, validation = _official("cifar10", "CIFAR10", root, f"{CIFAR10_FOLDER}/data_batch_1")
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
    train, validation = _official("cifar100", "CIFAR100", root, "cifar-100-python/train")
    return make_source("cifar100", train, validation)


for further in (image_folder, image_table, arrays, gaussian_teacher, linear_subspaces):
    DATASETS.add(further)


def _official(name: str, kind: str, root: Path | DataRoot, example: str) -> tuple[Split, Split]:
    """Read a data set that torchvision knows, whose loading takes seconds."""
    from qtool.data.official import official

    return official(name, kind, root, example)

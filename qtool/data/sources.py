"""What a data set hands to the loaders, and what is known about each without looking at its data.

To add a data set, write its row in FACTS and its function in `qtool.data.datasets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from qtool.data.class_names import class_names
from qtool.errors import DataError

T = TypeVar("T")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Split:
    """One half of a data set that fits in memory."""

    images: Tensor  # uint8 [N, C, H, W]; float32 where they are no pictures: taken as they are
    labels: Tensor  # int64 [N], classes; float32: [N], numbers to be met, or as of FileSplit

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Split":
        """Return the samples at `indices`, int64 [M], in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FileSplit:
    """One half of a data set of image files, which are read when they are needed."""

    paths: list[Path]
    labels: list[int] | Tensor  # classes; float32 [N, classes] where an image may have several

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> "FileSplit":
        """Return the samples at `indices`, int64 [M], in that order."""
        paths, labels = self.paths, self.labels
        chosen = indices.tolist()
        kept = labels[indices] if isinstance(labels, Tensor) else [labels[i] for i in chosen]
        return FileSplit([paths[i] for i in chosen], kept)

    def used(self) -> set[int]:
        """Return the classes that have an image."""
        labels = self.labels
        return set(labels.any(0).nonzero()[:, 0].tolist() if isinstance(labels, Tensor) else labels)


class Teacher(NamedTuple):
    """The network of two linear layers that computed the targets of a data set."""

    v: Tensor  # second layer, float64 [m]
    w: Tensor  # first layer, shared by all rows of an input, float64 [n], of norm 1


@dataclass(frozen=True)
class DataSource:
    """A data set: two halves, how to normalise its images and how to vary them in training."""

    name: str
    train: Split | FileSplit
    validation: Split | FileSplit
    classes: int
    mean: tuple[float, ...]  # per channel, of images scaled to 0..1
    std: tuple[float, ...]
    image_size: int  # natural height and width, pixels; the width of what is no picture
    crop_padding: int  # training crops shift by up to so many pixels at image_size; 0: none
    flip: bool  # training images are mirrored left to right, every second one at random
    note: str = ""  # one line said to the user
    teacher: Teacher | None = None
    class_names: tuple[str, ...] = ()  # in the order of labels; none where labels are numbers

    @property
    def pictures(self) -> bool:
        """Tell whether it has pixels of 0 to 255, and no numbers that are taken as they are."""
        return isinstance(self.train, FileSplit) or not self.train.images.is_floating_point()


@dataclass(frozen=True)
class Facts:
    """What is true of a data set before its files are opened; None where only they can tell."""

    classes: int | None
    channels: int | None
    image_size: int | None
    crop_padding: int
    flip: bool
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


PHOTOGRAPHS = Facts(
    None,
    3,
    224,
    crop_padding=0,
    flip=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
# Mean and std of the training images as published with the usual recipes: MNIST in PyTorch's
# examples/mnist, CIFAR-10 and CIFAR-100 in reproductions of arXiv:1605.07146, ImageNet in
# torchvision/references; those of Fashion-MNIST follow from its 60,000 images.
FACTS = {
    # A shift by one of 8 pixels takes lenet5 from 97.5 to 98.3 % (16 px, 20 epochs, 3 seeds).
    "digits": Facts(10, 1, 8, crop_padding=1, flip=False),
    "mnist": Facts(10, 1, 28, crop_padding=2, flip=False, mean=(0.1307,), std=(0.3081,)),
    "fashion_mnist": Facts(10, 1, 28, crop_padding=2, flip=True, mean=(0.2860,), std=(0.3530,)),
    "cifar10": Facts(
        10,
        3,
        32,
        crop_padding=4,
        flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Facts(
        100,
        3,
        32,
        crop_padding=4,
        flip=True,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "image_folder": PHOTOGRAPHS,
    "image_table": PHOTOGRAPHS,
    "arrays": Facts(None, None, None, crop_padding=0, flip=False),
    "gaussian_teacher": Facts(1, 1, None, crop_padding=0, flip=False, mean=(0.0,), std=(1.0,)),
    "linear_subspaces": Facts(None, 1, None, crop_padding=0, flip=False, mean=(0.0,), std=(1.0,)),
}
SYNTHETIC = ("gaussian_teacher", "linear_subspaces")  # vectors and matrices, no pictures


def make_source(
    name: str,
    train: Split | FileSplit,
    validation: Split | FileSplit,
    *,
    note: str = "",
    classes: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    image_size: int | None = None,
    teacher: Teacher | None = None,
    names: Sequence[str] = (),
) -> DataSource:
    """Join the facts about `name` with its images, and with what only those could tell."""
    facts = FACTS[name]
    classes = _told(classes, facts.classes)
    some = torch.as_tensor(train.labels[:1])
    numbers = some.is_floating_point() and some.ndim == 1
    return DataSource(
        name,
        train,
        validation,
        classes=classes,
        mean=_told(mean, facts.mean),
        std=_told(std, facts.std),
        image_size=_told(image_size, facts.image_size),
        crop_padding=facts.crop_padding,
        flip=facts.flip,
        note=note,
        teacher=teacher,
        class_names=() if numbers else tuple(names) or class_names(name, classes),
    )


def _told(measured: T | None, known: T | None) -> T:
    found = known if measured is None else measured
    assert found is not None
    return found


def _facts(name: str) -> Facts:
    """Return what is true of a data set; of a user's nothing is known."""
    return FACTS.get(name, Facts(None, None, None, crop_padding=0, flip=False))


def known_classes(name: str, **params: object) -> int | None:
    """Return the number of classes of data set `name`, or None where only its files can tell."""
    if name == "image_folder" and params.get("labels") == "imagenet":
        return IMAGENET_CLASSES
    return _whole(params["classes"]) if name == "linear_subspaces" else _facts(name).classes


def known_image_size(name: str, **params: object) -> int | None:
    """Return the natural image size in pixels, or None where only the files can tell.

    Of what is no picture it is the width.
    """
    widths = {"gaussian_teacher": "columns", "linear_subspaces": "dimension"}
    return _whole(params[widths[name]]) if name in SYNTHETIC else _facts(name).image_size


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def known_channels(name: str) -> int | None:
    """Return 1 (grey) or 3 (RGB), or None where only the files can tell."""
    return _facts(name).channels


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel of `images`, uint8 [N, C, H, W], scaled to 0..1.

    Counts of the 256 values give both exactly, without a float copy of the images.
    """
    value = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        counts = sum(chunk.flatten().bincount(minlength=256) for chunk in channel.split(4096))
        share = torch.as_tensor(counts, dtype=torch.float64) / channel.numel()
        mean = (share * value).sum()
        means.append(float(mean))
        stds.append(float((share * (value - mean) ** 2).sum().sqrt()))
    return tuple(means), tuple(stds)


def split_files(images: FileSplit, share: float, where: Path) -> tuple[FileSplit, FileSplit]:
    """Split image files in two, as `fixed_split` does: those to train on, and a share to judge by.

    Raises:
        DataError: If there are fewer than two; it names `where`.
    """
    if len(images) < 2:
        raise DataError(f"{where}: holds one image; at least two are needed, to train and to judge")
    validation = min(max(round(share * len(images)), 1), len(images) - 1)
    train_indices, held_out = fixed_split(images.labels, validation)
    return images.subset(train_indices), images.subset(held_out)


def fixed_split(labels: list[int] | Tensor, validation: int) -> tuple[Tensor, Tensor]:
    """Split samples in two: the same way every time, classes in proportion where possible.

    Args:
        labels: Class of each of N samples; as FileSplit has them.
        validation: How many samples to set aside, 1..N-1.

    Returns:
        Indices, int64 ascending, of the training samples and of the validation samples.
    """
    # scikit-learn takes a second to load, and most data sets come with their own split.
    from sklearn.model_selection import train_test_split

    if isinstance(labels, Tensor):  # an image with several classes has no one proportion
        labels = [0] * len(labels)
    classes, counts = np.unique(labels, return_counts=True)
    room_for_all = len(classes) <= min(validation, len(labels) - validation)
    train, held_out = train_test_split(
        np.arange(len(labels)),
        test_size=validation,
        random_state=0,
        stratify=labels if room_for_all and counts.min() > 1 else None,
    )
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(held_out))

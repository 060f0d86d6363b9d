"""A folder of unlabelled images that calibrate a network in the place of its training data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qtool.data.loaders import Loaders
from qtool.data.sources import FileSplit
from qtool.errors import DataError
from qtool.images.files import SUFFIXES, images_in, read_image
from qtool.images.preprocess import Preprocess
from qtool.recipe.recipe import Recipe

SHOWN = 3  # names in a message


@dataclass(frozen=True)
class FolderBatches:
    """Batches of unlabelled images, decoded as they are asked for.

    Attributes:
        paths: of the images, in order.
        rule: how each is prepared, as one that judges is.
        size: of a batch.
    """

    paths: tuple[Path, ...]
    rule: Preprocess
    size: int
    device: torch.device
    channels_last: bool

    @property
    def samples(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __len__(self) -> int:
        return -(-len(self.paths) // self.size)

    def part(self, rank: int, size: int) -> "FolderBatches":
        """Return every `size`-th of the images, from `rank` on."""
        return replace(self, paths=self.paths[rank::size])

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B, C, H, W], and no labels [0]; the same ones in every epoch.

        Raises:
            DataError: If an image cannot be read; names it.
        """
        del epoch
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for first in range(start * self.size, len(self.paths), self.size):
            paths = self.paths[first : first + self.size]
            made = [self.rule.prepared(read_image(path, self.rule.channels)) for path in paths]
            images = torch.from_numpy(np.stack(made)).to(self.device, memory_format=layout)
            yield images, torch.empty(0)


def with_calibration_images(
    data: Loaders, folder: Path, recipe: Recipe, device: torch.device
) -> Loaders:
    """Return the batches of a recipe, with those of a folder in the place of the training images.

    Of more images than the recipe calibrates with, as many, evenly over their names.

    Raises:
        DataError: If it is no folder, or holds no images, or images that judge; or the data are no
            pictures.
    """
    if data.preprocess is None:
        raise DataError(f"{folder}: the recipe's data are no pictures; leave this folder out")
    paths = images_in(folder) if folder.is_dir() else []
    if not paths:
        ends = ", ".join(sorted(SUFFIXES))
        why = "holds no images" if folder.is_dir() else "no such folder of images"
        raise DataError(f"{folder}: {why}; their names end in {ends}")
    most = recipe.training.calibration_batches * recipe.data.batch_size
    if len(paths) > most:
        paths = [paths[place * len(paths) // most] for place in range(most)]
    _refuse_judges(paths, data, folder)
    given = FolderBatches(
        tuple(paths),
        data.preprocess,
        recipe.data.batch_size,
        device,
        channels_last=recipe.training.channels_last,
    )
    return replace(data, train=given, unmixed=given)


def _refuse_judges(paths: list[Path], data: Loaders, folder: Path) -> None:
    """Check that no image is one of those that judge, by what is in the files.

    Only files of equal size are read.
    """
    splits = (data.validation_split, data.holdout_split)
    judges = [path for split in splits if isinstance(split, FileSplit) for path in split.paths]
    sizes: dict[int, list[Path]] = {}
    for path in judges:
        sizes.setdefault(path.stat().st_size, []).append(path)
    known: dict[int, set[str]] = {}
    found = []
    for path in paths:
        size = path.stat().st_size
        if size in sizes:
            if size not in known:
                known[size] = {_digest(judge) for judge in sizes[size]}
            if _digest(path) in known[size]:
                found.append(path.name)
    if found:
        more = ", ..." if len(found) > SHOWN else ""
        named = f"{', '.join(found[:SHOWN])}{more}"
        why = f"{len(found)} of its images are among those that judge ({named})"
        raise DataError(f"{folder}: {why}; give others, such as training images")


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()

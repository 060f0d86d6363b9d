"""Batches of a data set of image files: worker processes read, crop and stack the images.

What happens to an image depends on seed, epoch and its place in the data set only, so any number
of workers gives the same batches.
"""

import math
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qtool.data.batches import Normalizer, batch_sizes, seeded_generator
from qtool.data.sources import FileSplit
from qtool.errors import DataError

RGB = 3
# As in torchvision's RandomResizedCrop: Szegedy et al., 2014, arXiv:1409.4842.
CROP_AREA = (0.08, 1.0)  # share of the image
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height
CROP_ATTEMPTS = 10
VALIDATION_RESIZE = 256 / 224  # shorter side before the centre crop, over the crop

Box = tuple[float, float, float, float]  # left, top, right, bottom; pixels
Work = tuple[int, list[int]]  # epoch, indices of the images of one batch


class FileBatches:
    """Batches of a `FileSplit`. Training shuffles and crops at random; validation does not.

    One pass at a time: to start an epoch ends the one before it.
    """

    def __init__(
        self,
        split: FileSplit,
        normalizer: Normalizer,
        *,
        batch_size: int,
        image_size: int,
        augment: bool,
        flip: bool,
        training: bool,
        seed: int,
        device: torch.device,
        workers: int,
    ) -> None:
        """Prepare to read the images; no file is opened and no process started yet.

        Args:
            split: Files and labels.
            normalizer: Turns uint8 images into what the network takes.
            batch_size: Images in a batch.
            image_size: Height and width of the crops, pixels.
            augment: Crop at random; else cut the centre.
            flip: Mirror every second image left to right, at random.
            training: Shuffle, and drop a last batch that is not full.
            seed: Sets order and crops, together with the epoch.
            device: Where batches are put.
            workers: Processes that read files; 0 reads in this one.
        """
        self._normalize = normalizer
        self._training = training
        self._seed = seed
        self._device = device
        self._samples = len(split)
        self._sizes = batch_sizes(len(split), batch_size, drop_last=training)
        self._pass = 0
        self._work: list[Work] = []
        self._reader = _ImageBatchReader(
            split, image_size=image_size, augment=augment, flip=flip, seed=seed
        )
        self._workers = min(workers, _usable_cores())
        self._loader = self._new_loader()

    @property
    def samples(self) -> int:
        """Number of images in the set."""
        return self._samples

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._sizes)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images, float32 [B, C, H, W], and their classes, int64 [B].

        Raises:
            DataError: If an image cannot be read; it names the file.
        """
        self._pass += 1
        this_pass = self._pass
        self._work[:] = self._plan(epoch)
        for read in self._loader:
            if isinstance(read, str):
                # Workers stop at once when their loader goes; the error would keep it alive.
                self._loader = self._new_loader()
                raise DataError(read)
            images, labels = (part.to(self._device, non_blocking=True) for part in read)
            yield self._normalize(images.permute(0, 3, 1, 2)), labels
            if self._pass != this_pass:
                raise ValueError("another epoch was started before this one ended")

    def _new_loader(self) -> DataLoader[tuple[Tensor, Tensor] | str]:
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=_LatestWork(self._work),
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            multiprocessing_context=_process_context() if self._workers else None,
            pin_memory=self._device.type == "cuda",
            # Without a generator of its own the loader would draw from the global one.
            generator=torch.Generator(),
        )

    def _plan(self, epoch: int) -> list[Work]:
        order = torch.arange(self._samples)
        if self._training:
            order = torch.randperm(self._samples, generator=seeded_generator(self._seed, epoch))
        used = order[: sum(self._sizes)].split(self._sizes)
        return [(epoch, indices.tolist()) for indices in used]


class _LatestWork:
    """The sampler of a loader that outlives its epochs: the list it was given, as it is now."""

    def __init__(self, work: list[Work]) -> None:
        self._work = work

    def __iter__(self) -> Iterator[Work]:
        return iter(list(self._work))

    def __len__(self) -> int:
        return len(self._work)


class _ImageBatchReader(Dataset[tuple[Tensor, Tensor] | str]):
    """Reads one batch: uint8 [B, H, W, 3] and int64 [B], or a sentence saying why it could not.

    The sentence is returned because an error raised in a worker reaches the user with the
    worker's traceback in it.
    """

    def __init__(
        self, split: FileSplit, *, image_size: int, augment: bool, flip: bool, seed: int
    ) -> None:
        self._split = split
        self._image_size = image_size
        self._augment = augment
        self._flip = flip
        self._seed = seed

    def __getitem__(self, work: Work) -> tuple[Tensor, Tensor] | str:
        epoch, indices = work
        try:
            images = np.stack([self._read(epoch, index) for index in indices])
        except DataError as error:
            return str(error)
        return torch.from_numpy(images), torch.tensor([self._split.labels[i] for i in indices])

    def _read(self, epoch: int, index: int) -> np.ndarray:
        image = read_image(self._split.paths[index])
        size = self._image_size
        if not self._augment:
            return np.array(_centre_crop(image, size))
        generator = seeded_generator(self._seed, epoch, index)
        box = random_box(image.width, image.height, generator)
        crop = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
        mirrored = self._flip and float(torch.rand((), generator=generator)) < 0.5
        return crop[:, ::-1] if mirrored else crop


def read_image(path: Path) -> Image.Image:
    """Decode an image file as RGB, 8 bits per channel.

    Raises:
        DataError: If it is missing, damaged, or holds more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "F" or image.mode.startswith("I"):
                raise DataError(f"{path}: has more than 8 bits per channel; save it with 8")
            # Pillow warns when transparent palettes are turned into RGB directly.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            return opaque.convert("RGB")
    except DataError:
        raise
    # Each of Pillow's formats fails on damaged files in its own way.
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path}: cannot be read as an image ({reason})") from error


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` * 256 / 224, then cut `size` x `size` from the middle."""
    shorter = min(image.width, image.height)
    target = round(size * VALIDATION_RESIZE)
    width, height = (int(target * side / shorter) for side in (image.width, image.height))
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def random_box(width: int, height: int, generator: torch.Generator) -> Box:
    """Draw the part of an image of `width` x `height` pixels that a training crop shows.

    Its area and aspect are uniform in CROP_AREA and, on a log scale, CROP_ASPECT; where no such
    box fits in CROP_ATTEMPTS, it is the largest centred one.
    """
    low, high = (math.log(aspect) for aspect in CROP_ASPECT)
    for _ in range(CROP_ATTEMPTS):
        drawn_area, drawn_aspect, across, down = torch.rand(4, generator=generator).tolist()
        area = width * height * (CROP_AREA[0] + drawn_area * (CROP_AREA[1] - CROP_AREA[0]))
        aspect = math.exp(low + drawn_aspect * (high - low))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(across * (width - box_width + 1))
            top = int(down * (height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = min(width, round(height * CROP_ASPECT[1]))
    box_height = min(height, round(width / CROP_ASPECT[0]))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _usable_cores() -> int:
    """Count the cores this process may use: the loader warns about more workers than that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _process_context() -> BaseContext:
    """Return a way to start workers that is safe beside CUDA and threads, which plain fork is not.

    A server process imports this module once, so that each worker starts in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context

"""Batches of a data set of image files: worker processes read, crop and stack the images.

What happens to an image depends on seed, epoch and its place in the data set only, so any number
of workers gives the same batches. Training workers go on with the next epoch while the validation
set is judged, so that its first batches are ready or under way when it begins.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import count
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qtool.data.augmentations import Augmentation
from qtool.data.bad_files import Unread, all_named
from qtool.data.batches import Normalizer, batch_sizes, seeded_generator
from qtool.data.image_files import centre_pixels, random_crop, whole_pixels
from qtool.data.sources import FileSplit
from qtool.data.worker_life import EndsWithReader, usable_cores
from qtool.errors import DataError, QtoolError

RGB = 3
Label = int | Tensor  # a class; float32 [classes] where an image may have several
Work = tuple[int, list[tuple[int, Path, Label]]]  # epoch; index, file and label of each image
Read = tuple[Tensor, Tensor] | Unread | str  # a batch, a file, or what is wrong with transforms


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
        augmentation: Augmentation | None = None,
        beside: Sequence[Path] = (),
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
            workers: Processes that read files; 0 reads in this one. Beside a GPU, as many as
                there are cores; where the network itself trains on the cores, 1 or 2.
            augmentation: What is done to training images beside.
            beside: All files of the data set; where one cannot be read, all such are named.
        """
        self._normalize = normalizer
        self._training = training
        self._device = device
        self._samples = len(split)
        self._sizes = batch_sizes(len(split), batch_size, drop_last=training)
        self._pass, self._beside = 0, beside or split.paths
        self._plan = _Plan(split, self._sizes, training=training, seed=seed)
        self._reader = _ImageBatchReader(
            image_size=image_size,
            augment=augment,
            flip=flip,
            seed=seed,
            augmentation=augmentation if training else None,
        )
        self._workers = min(workers, usable_cores())
        self._loader = self._new_loader()
        self._stream: Iterator[Read] = iter(())
        self._ready: int | None = None  # the epoch whose first batch the stream gives next

    def part(self, rank: int, size: int) -> "FileBatches":
        """Return the same batches with rows rank, rank + size, ... of each alone.

        They have readers of their own, and those of the whole are let go.
        """
        made = copy(self)
        made._plan = self._plan.part(rank, size)
        made._stream, made._ready, made._loader = iter(()), None, made._new_loader()
        self._stream, self._ready, self._loader = iter(()), None, self._new_loader()
        return made

    @property
    def samples(self) -> int:
        """Number of images in the set."""
        return self._samples

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._sizes)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images, float32 [B, C, H, W], and their classes, int64 [B].

        The first `start` batches of the epoch are left out, and none of their files is read.

        Raises:
            DataError: If an image cannot be read; it names the file, and all others like it.
        """
        self._pass += 1
        this_pass = self._pass
        if self._ready != epoch or start:
            self._plan.first_epoch, self._plan.first_batch = epoch, start
            self._stream = self._new_stream()
        self._ready = None
        for place in range(start, len(self)):
            read = next(self._stream)
            if isinstance(read, Unread | str):
                # Workers stop at once when their loader goes; the error would keep it alive.
                self._stream, self._loader = iter(()), self._new_loader()
                raise DataError(read) if isinstance(read, str) else all_named(read, self._beside)
            if self._training and place == len(self) - 1:
                self._ready = epoch + 1
            images, labels = (part.to(self._device, non_blocking=True) for part in read)
            yield self._normalize(images.permute(0, 3, 1, 2)), labels
            if self._pass != this_pass:
                raise ValueError("another epoch was started before this one ended")

    def _new_stream(self) -> Iterator[Read]:
        stream = iter(self._loader)
        ends = self._loader.worker_init_fn
        if isinstance(ends, EndsWithReader):
            ends.end_with(stream)
        return stream

    def _new_loader(self) -> DataLoader[Read]:
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._plan,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            multiprocessing_context=_process_context() if self._workers else None,
            worker_init_fn=EndsWithReader() if self._workers else None,
            pin_memory=self._device.type == "cuda",
            # Without a generator of its own the loader would draw from the global one.
            generator=torch.Generator(),
        )


class _Plan:
    """The sampler: what to read for each batch of `first_epoch`, and in training of all after it.

    It begins with `first_batch` of that epoch.

    Workers are told the files batch by batch: a copy of the whole list in each of them would make
    large sets slow to start.
    """

    def __init__(self, split: FileSplit, sizes: list[int], *, training: bool, seed: int) -> None:
        self.first_epoch = self.first_batch = 0
        self._split = split
        self._sizes = sizes
        self._training = training
        self._seed = seed
        self._rows = slice(None)  # of each batch

    def part(self, rank: int, size: int) -> "_Plan":
        """Return a plan of rows rank, rank + size, ... of each batch."""
        made = copy(self)
        made._rows = slice(rank, None, size)
        return made

    def __iter__(self) -> Iterator[Work]:
        start = self.first_batch
        for epoch in count(self.first_epoch) if self._training else [self.first_epoch]:
            order = self._order(epoch)[: sum(self._sizes)]
            for indices in order.split(self._sizes)[start:]:
                yield epoch, [self._file(index) for index in indices[self._rows].tolist()]
            start = 0

    def _order(self, epoch: int) -> Tensor:
        samples = len(self._split)
        if self._training:
            return torch.randperm(samples, generator=seeded_generator(self._seed, epoch))
        return torch.arange(samples)

    def _file(self, index: int) -> tuple[int, Path, Label]:
        return index, self._split.paths[index], self._split.labels[index]


class VariedError(Exception):
    """A transform could not vary an image."""


class _ImageBatchReader(Dataset[Read]):
    """Reads one batch: uint8 [B, H, W, 3] and its labels, or says which file could not be read.

    That is returned, because an error raised in a worker reaches the user with the worker's
    traceback in it.
    """

    def __init__(
        self,
        *,
        image_size: int,
        augment: bool,
        flip: bool,
        seed: int,
        augmentation: Augmentation | None,
    ) -> None:
        self._augmentation = augmentation
        self._image_size = image_size
        self._augment = augment
        self._flip = flip
        self._seed = seed

    def __getitem__(self, work: Work) -> Read:
        epoch, files = work
        images = np.empty((len(files), self._image_size, self._image_size, RGB), np.uint8)
        for place, (index, path, _) in enumerate(files):
            try:
                images[place] = self._read(epoch, index, path)
            except DataError as error:
                return Unread(path, str(error))
            except VariedError as error:
                return str(error)
        labels = [torch.as_tensor(label) for *_, label in files]
        return torch.from_numpy(images), torch.stack(labels) if labels else torch.empty(0)

    def _read(self, epoch: int, index: int, path: Path) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]."""
        steps = self._augmentation
        if steps is None or not steps.steps:
            return self._cut(epoch, index, path)
        if steps.sized:
            pixels = whole_pixels(path)
        else:
            cut = np.array(self._cut(epoch, index, path))  # a copy: torch takes no others
            pixels = torch.from_numpy(cut).permute(2, 0, 1)
        try:
            varied = steps.one(pixels, self._seed, epoch, index)
        except QtoolError as error:
            raise VariedError(str(error)) from error
        return varied.permute(1, 2, 0).numpy()

    def _cut(self, epoch: int, index: int, path: Path) -> np.ndarray:
        size = self._image_size
        if not self._augment:
            return centre_pixels(path, size)
        generator = seeded_generator(self._seed, epoch, index)
        crop = np.asarray(random_crop(path, size, generator))
        mirrored = self._flip and float(torch.rand((), generator=generator)) < 0.5
        return crop[:, ::-1] if mirrored else crop


def _process_context() -> BaseContext:
    """Return a way to start workers that is safe beside CUDA and threads, which plain fork is not.

    A server process imports this module once, so that each worker starts in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context

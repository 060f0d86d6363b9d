"""Batches of a data set that fits in memory: images wait on the device, and are varied there."""

import platform
from collections.abc import Iterator
from copy import copy
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from qtool.data.augmentations import Augmentation
from qtool.data.batches import Normalizer, batch_sizes, seeded_generator
from qtool.data.sources import Split

# Images are resized once, unless that would take more memory than this: then batch by batch.
LARGEST_RESIZED_SET = 2 * 2**30  # bytes
RESIZE_CHUNK = 1024  # images


class TensorBatches:
    """Batches of a `Split`. Training shuffles, shifts and mirrors; validation does none of it."""

    def __init__(
        self,
        split: Split,
        normalizer: Normalizer,
        *,
        batch_size: int,
        image_size: int,
        crop_padding: int,
        flip: bool,
        training: bool,
        seed: int,
        device: torch.device,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Move the images to the device and resize them.

        Args:
            split: Images and labels.
            normalizer: Turns uint8 images into what the network takes.
            batch_size: Images in a batch.
            image_size: Height and width to resize to, pixels.
            crop_padding: Shift each training image by up to so many pixels of `image_size`, with
                black (0, before normalisation) moving in.
            flip: Mirror every second training image left to right, at random.
            training: Shuffle, and drop a last batch that is not full.
            seed: Sets order, shifts and flips, together with the epoch.
            device: Where images are kept and batches are made.
            augmentation: What is done to training images beside.
        """
        self._normalize = normalizer
        self._image_size = image_size
        self._crop_padding = crop_padding
        self._flip = flip
        self._training = training
        self._seed = seed
        self._device = device
        self._augmentation = augmentation if training else None
        self._labels = split.labels.to(device)
        self._images = _resize_all(split.images.to(device), image_size)
        self._sizes = batch_sizes(len(split), batch_size, drop_last=training)
        self._rows = slice(None)  # of each batch

    def part(self, rank: int, size: int) -> "TensorBatches":
        """Return the same batches with rows rank, rank + size, ... of each alone."""
        made = copy(self)  # images and labels are shared
        made._rows = slice(rank, None, size)
        return made

    @property
    def samples(self) -> int:
        """Number of images in the set."""
        return len(self._labels)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._sizes)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images, float32 [B, C, H, W], and their classes or targets [B].

        The first `start` batches of the epoch are left out.
        """
        generator = seeded_generator(self._seed, epoch)
        if not self._training:
            ends = list(accumulate(self._sizes, initial=0))
            for first, last in list(pairwise(ends))[start:]:
                span = slice(first + (self._rows.start or 0), last, self._rows.step)
                yield self._normalize(self._resized(self._images[span])), self._labels[span]
            return
        # All numbers are drawn on the CPU, so that every device sees the same order, and at once,
        # so that the device waits for one copy in an epoch.
        order = torch.randperm(self.samples, generator=generator)
        shifts = torch.randint(2 * self._crop_padding + 1, (self.samples, 2), generator=generator)
        flips = torch.rand(self.samples, generator=generator) < (0.5 if self._flip else 0.0)
        drawn = (order.to(self._device), shifts.to(self._device), flips.to(self._device))
        parts = [d.split(self._sizes[0])[start:] for d in (*drawn, order)]
        for chosen, shift, mirrored, places in zip(*parts, strict=True):
            if len(chosen) < self._sizes[0]:
                return
            chosen, shift, mirrored = (d[self._rows] for d in (chosen, shift, mirrored))
            images = self._resized(self._images[chosen])
            if self._crop_padding or self._flip:
                images = _shift_and_mirror(images, shift, mirrored, self._crop_padding)
            if self._augmentation is not None:
                indices = places[self._rows].tolist()
                images = self._augmentation.batch(images, self._seed, epoch, indices)
            yield self._normalize(images), self._labels[chosen]

    def _resized(self, images: Tensor) -> Tensor:
        return images if images.shape[-1] == self._image_size else _resize(images, self._image_size)


def _resize_all(images: Tensor, size: int) -> Tensor:
    samples, channels, _, width = images.shape
    if width == size or samples * channels * size**2 > LARGEST_RESIZED_SET:
        return images
    resized = images.new_empty(samples, channels, size, size)
    for chunk, target in zip(images.split(RESIZE_CHUNK), resized.split(RESIZE_CHUNK), strict=True):
        target.copy_(_resize(chunk, size))
    return resized


def _resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images, [B, C, H, W], to `size` x `size` pixels.

    It is what torchvision.transforms.v2.functional.resize does, to the last bit, without what
    loading that costs: 2 s.
    """
    if images.device.type == "cpu" and _resizes_integers():
        return nn_functional.interpolate(images, [size, size], mode="bilinear", antialias=True)
    made = nn_functional.interpolate(images.float(), [size, size], mode="bilinear", antialias=True)
    return made.round_().to(images.dtype)


def _resizes_integers() -> bool:
    """Tell whether torch has kernels for uint8 images on this processor, which round otherwise."""
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return wide or platform.machine() in ("aarch64", "arm64")


def _shift_and_mirror(images: Tensor, shift: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Cut a crop of its own from each padded image, and mirror some of them.

    torchvision's RandomCrop draws one crop for a whole batch; gathering rows and columns gives
    each image its own.

    Args:
        images: uint8 [B, C, H, W].
        shift: Top row and left column of each crop, int64 [B, 2], in 0..2 * padding.
        mirrored: Which crops to mirror, bool [B].
        padding: Black pixels added on each side.

    Returns:
        uint8 [B, C, H, W], stored with the channels last.
    """
    size = images.shape[-1]
    padded = nn_functional.pad(images, [padding] * 4)
    steps = torch.arange(size, device=images.device)
    rows = shift[:, :1] + steps
    columns = shift[:, 1:] + torch.where(mirrored[:, None], steps.flip(0), steps)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    channels_last = padded.permute(0, 2, 3, 1)
    return channels_last[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

"""Loaders: a data set in, batches for training and validation out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qtool.data.augmentations import Augmentation, augmentation_of
from qtool.data.bad_files import Unread, all_named
from qtool.data.batches import Batches, Normalizer, Repeated, seeded_generator
from qtool.data.file_batches import RGB, FileBatches
from qtool.data.holdout import hold_out
from qtool.data.mixing import Mixed
from qtool.data.sources import DataSource, FileSplit, Split, Teacher
from qtool.data.tensor_batches import TensorBatches
from qtool.errors import DataError
from qtool.images.files import read_image
from qtool.images.preprocess import Pixels, Preprocess, center_of_shorter_side, squeezed
from qtool.settings.section import Choice

# Which samples `train_samples` picks must not change from seed to seed of a comparison.
SUBSET_SEED = 0


@dataclass(frozen=True)
class Loaders:
    """Batches of both halves, and the shape of what is in them."""

    train: Batches
    validation: Batches
    classes: int
    channels: int
    image_size: int  # height and width of every image, pixels; the width of what is no picture
    note: str  # one line said to the user
    teacher: Teacher | None = None  # that computed the targets
    class_names: tuple[str, ...] = ()  # in the order of labels; none where labels are numbers
    preprocess: Preprocess | None = None  # how validation images are prepared; None: no pictures
    validation_split: Split | FileSplit | None = None  # what those images are made of
    train_split: Split | FileSplit | None = None  # likewise
    holdout: Batches | None = None  # of training images that are held out
    holdout_split: Split | FileSplit | None = None  # likewise
    unmixed: Batches | None = None  # what `training_images` yields, where that is not `train`'s
    judging: Callable[[Split | FileSplit], Batches] | None = None  # as validation images are shown

    def training_images(self, epoch: int) -> Iterator[Tensor]:
        """Yield the training batches' images [B, C, H, W], each of one picture.

        That is what ranges and batch norms are set by; a transform whose file may not run is left
        out here, so that a run can be judged and exported without it.
        """
        for images, _ in (self.unmixed or self.train).batches(epoch):
            yield images

    def last_images(self, seed: int, *, share: float, behind: int) -> Batches:
        """Return the last training images in the order of the first epoch, shown to be judged by.

        Args:
            seed: of the order.
            share: of all training images.
            behind: so many at the beginning of the epoch are never among them.

        Raises:
            DataError: If none are left.
        """
        split, judging = self.train_split, self.judging
        count = 0 if split is None else len(split)
        begin = max(behind, count - round(share * count))
        if split is None or judging is None or begin >= count:
            raise DataError(
                f"no training images are left behind the {min(behind, count):,} that calibrate; "
                "set data.holdout, such as 0.1, or lower training.calibration_batches"
            )
        order = torch.randperm(count, generator=seeded_generator(seed, 0))
        return judging(split.subset(order[begin:].sort().values))

    @property
    def several(self) -> bool:
        """Tell whether an image may have several classes: labels are float32 [B, classes] then."""
        split = self.validation_split
        return split is not None and torch.as_tensor(split.labels[:1]).ndim > 1

    @cached_property
    def first_images(self) -> Tensor:
        """Return the first training batch's images [B, C, H, W], decoded once."""
        return next(self.training_images(0))

    def validation_pictures(self) -> Iterator[Pixels]:
        """Yield validation images in order, before anything is done to them: uint8 [H, W, C].

        Raises:
            DataError: If an image cannot be read; it names the file, and all others like it.
        """
        split = self.validation_split
        if isinstance(split, FileSplit):
            for path in split.paths:
                try:
                    picture = read_image(path)
                except DataError as error:
                    raise all_named(Unread(path, str(error)), split.paths) from error
                yield np.array(picture)  # a copy: torch takes no others
        elif split is not None:
            for image in split.images:
                yield np.ascontiguousarray(image.permute(1, 2, 0).numpy())

    def labelled_pictures(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same, each as a batch of one, uint8 [1, H, W, C], with its label [1].

        Raises:
            DataError: If an image cannot be read; it names the file, and all others like it.
        """
        split = self.validation_split
        labels = torch.as_tensor([] if split is None else split.labels)
        for place, picture in enumerate(self.validation_pictures()):
            yield torch.from_numpy(picture)[None], labels[place : place + 1]


def make_loaders(
    source: DataSource,
    *,
    batch_size: int,
    image_size: int | None,
    channels: int | None = None,
    train_samples: int | None,
    validation_samples: int | None = None,
    holdout: float = 0.0,
    repeats: int = 1,
    seed: int,
    device: torch.device,
    augment: bool | Sequence[Choice] = True,
    workers: int = 2,
    channels_last: bool = True,
) -> Loaders:
    """Make the batches of both halves of `source`.

    Args:
        source: A data set, from `qtool.data.datasets`.
        batch_size: Images in a batch; all training images where there are fewer.
        image_size: Height and width to resize to, pixels; None keeps the natural size.
        channels: Repeat grey to so many channels; None keeps what the data has.
        train_samples: Take only the first so many of a shuffle of the training images, which is
            the same one for every `seed`.
        validation_samples: Take at most so many validation images, evenly over the set, which may
            be in the order of classes; None takes all.
        holdout: Share of the training images, after `train_samples`, that is held out, 0..1; the
            same ones for every `seed`.
        repeats: Passes over the training images in an epoch.
        seed: Sets order and augmentation, together with the epoch; the global random generator
            is neither read nor moved.
        device: Where batches are put, and where images in memory are kept.
        augment: Vary training images as the data set says, or by a list of names.
        workers: Processes that read image files.
        channels_last: Memory format of the batches.

    Raises:
        DataError: If the data set cannot give what is asked for.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("image_size", image_size),
        ("train_samples", train_samples),
        ("validation_samples", validation_samples),
        ("repeats", repeats),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not source.pictures and image_size not in (None, source.image_size):
        raise DataError(f"{source.name}: has no pictures to resize; leave out data.image_size")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a share in 0 <= holdout < 1, got {holdout}")
    for split in (source.train, source.validation):
        _check(split, source)
    train = source.train if train_samples is None else _subset(source, train_samples)
    held: Split | FileSplit | None = None
    if holdout:
        train, held = hold_out(train, holdout, source.name)
    size = image_size or source.image_size
    shown_channels = _channels(source, channels)
    normalizer = Normalizer(
        source.mean, source.std, channels=shown_channels, device=device, channels_last=channels_last
    )

    beside = _files(source)
    stored = RGB if isinstance(source.train, FileSplit) else source.train.images.shape[1]
    augmentation = augmentation_of(chosen=augment, image_size=size, channels=stored)

    def make(
        split: Split | FileSplit, *, training: bool, augmentation: Augmentation = augmentation
    ) -> Batches:
        vary = training and augmentation.own
        if isinstance(split, FileSplit):
            return FileBatches(
                split,
                normalizer,
                batch_size=batch_size,
                image_size=size,
                augment=vary,
                flip=vary and source.flip,
                training=training,
                seed=seed,
                device=device,
                workers=workers,
                augmentation=augmentation,
                beside=beside,
            )
        return TensorBatches(
            split,
            normalizer,
            batch_size=batch_size,
            image_size=size,
            crop_padding=round(source.crop_padding * size / source.image_size) if vary else 0,
            flip=vary and source.flip,
            training=training,
            seed=seed,
            device=device,
            augmentation=augmentation,
        )

    def several(one_pass: Batches) -> Batches:
        return one_pass if repeats == 1 else Repeated(one_pass, repeats)

    one_pass = make(train, training=True)
    mixes = augmentation.mixes
    mixed = Mixed(one_pass, mixes, source.classes, seed) if mixes else one_pass
    loaded = augmentation.loaded()
    if loaded is not augmentation:
        one_pass = make(train, training=True, augmentation=loaded)
    judged_by = _evenly(source.validation, validation_samples)
    return Loaders(
        train=several(mixed),
        unmixed=several(one_pass),
        validation=make(judged_by, training=False),
        classes=source.classes,
        channels=shown_channels,
        image_size=size,
        note=source.note,
        teacher=source.teacher,
        class_names=source.class_names,
        preprocess=_preprocess(source, size, shown_channels),
        validation_split=judged_by,
        train_split=train,
        holdout=None if held is None else make(held, training=False),
        holdout_split=held,
        judging=partial(make, training=False),
    )


def _files(source: DataSource) -> list[Path]:
    halves = (source.train, source.validation)
    return [path for half in halves if isinstance(half, FileSplit) for path in half.paths]


def _preprocess(source: DataSource, size: int, channels: int) -> Preprocess | None:
    """Return how validation images are prepared, or None where they are no pictures."""
    if not source.pictures:
        return None
    repeats = channels // len(source.mean)
    mean, std = source.mean * repeats, source.std * repeats
    if isinstance(source.train, FileSplit):
        return center_of_shorter_side(size, mean, std)
    return squeezed(size, mean, std, gray=len(source.mean) == 1)


def _check(split: Split | FileSplit, source: DataSource) -> None:
    if not len(split):
        raise DataError(f"{source.name}: has no images to train on, or none to judge by")
    labels = torch.as_tensor(split.labels)
    if labels.is_floating_point():
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= source.classes:
        raise DataError(
            f"{source.name}: labels run from {lowest} to {highest}; "
            f"needed are 0..{source.classes - 1}, the {source.classes} classes"
        )


def _evenly(split: Split | FileSplit, samples: int | None) -> Split | FileSplit:
    """Return at most so many samples of a split, at equal distances, in its order."""
    if samples is None or len(split) <= samples:
        return split
    return split.subset(torch.arange(samples) * len(split) // samples)


def _subset(source: DataSource, samples: int) -> Split | FileSplit:
    available = len(source.train)
    if samples > available:
        raise DataError(
            f"{source.name}: train_samples is {samples:,}, "
            f"more than the {available:,} training images there are"
        )
    shuffled = torch.randperm(available, generator=seeded_generator(SUBSET_SEED))
    return source.train.subset(shuffled[:samples])


def _channels(source: DataSource, wanted: int | None) -> int:
    split = source.train
    present = RGB if isinstance(split, FileSplit) else split.images.shape[1]
    if wanted is None or wanted == present:
        return present
    if present != 1 or not source.pictures:
        raise DataError(
            f"{source.name}: has {present} channels but the model takes {wanted}; only grey images "
            "can be repeated"
        )
    return wanted

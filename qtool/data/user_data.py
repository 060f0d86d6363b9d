"""A data set of the user's own, put into the table that recipes choose from.

It is a class or function that takes `train` or `split` and gives one half, or a function that
gives both. A half is anything with a length whose items are an image and its label. Images that
are paths are read as those of `image_folder` are; all others are read once, and kept in memory.
"""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from qtool.data.datasets import DATASETS
from qtool.data.root import DataRoot
from qtool.data.sources import PHOTOGRAPHS, DataSource, FileSplit, Split, channel_statistics
from qtool.errors import DataError
from qtool.settings.user_code import UserCode
from qtool.settings.user_parameters import as_member, parameters_of, settable
from qtool.settings.user_parts import Part, load_part

HALVES = ("train", "val")  # what `split` is for the two, unless the recipe says it
JUDGING = ("validation", "valid", "val", "test")  # of the half that judges, where both are given
GREY, RGB = "L", "RGB"


class _Half(Protocol):
    """What is used of a user's data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


class _Item(NamedTuple):
    image: object
    label: object


def load_data(name: str, code: UserCode, params: Mapping[str, object]) -> None:
    """Put a user's data set into DATASETS.

    Raises:
        RecipeError: If it is not there, may not run, or takes what no recipe gives.
    """
    del params
    part = load_part(name, code, "data set")
    accepted = parameters_of(part)

    def build(root: Path | DataRoot, /, **own: object) -> DataSource:
        if "root" in accepted and "root" not in own:
            own = {**own, "root": str(DataRoot.of(root).path)}
        with _fixed_randomness():
            return _source(part, _halves(part, own))

    given = {"train"} if "train" in accepted else set()
    kept = [_of_split(p) for p in settable(part, given) if p.name != "root"]
    DATASETS.add(as_member(part, build, kept, ("root",)), name)


def _of_split(parameter: Parameter) -> Parameter:
    """Return a parameter as a recipe sets it: `split` for both halves, in a list."""
    if parameter.name != "split":
        return parameter
    return parameter.replace(default=list(HALVES), annotation=list[str])


@contextmanager
def _fixed_randomness() -> Generator[None]:
    """Let random numbers be the same each time while inside: a split that is drawn stays one."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _halves(part: Part, own: Mapping[str, object]) -> tuple[_Half, _Half]:
    """Return what a user's part gives to train on, and to judge by.

    Raises:
        DataError: If it gives no two halves.
    """
    accepted = parameters_of(part)
    if "train" in accepted:
        made: Sequence[object] = [part.call(**own, train=train) for train in (True, False)]
    elif "split" in accepted:
        names = own.get("split", list(HALVES))
        if not isinstance(names, list) or len(names) != 2:
            why = f"split names two halves, such as {list(HALVES)}"
            raise DataError(f"{part.place}: {why}, in the recipe")
        made = [part.call(**{**own, "split": name}) for name in names]
    else:
        both = part.call(**own)
        if isinstance(both, Mapping):
            judging = next((key for key in JUDGING if key in both), "")
            both = [both.get("train"), both.get(judging)]
        made = [*both] if isinstance(both, tuple | list) else []
    if len(made) != 2 or not all(hasattr(half, "__getitem__") for half in made):
        raise DataError(
            f"{part.place} gives no two halves; let it take train or split, or return a data set "
            "to train on and one to judge by"
        )
    return cast(_Half, made[0]), cast(_Half, made[1])


def _source(part: Part, halves: tuple[_Half, _Half]) -> DataSource:
    """Read both halves, and say what is known of them."""
    train, validation = (_split_of(part, half) for half in halves)
    if isinstance(train, FileSplit) != isinstance(validation, FileSplit):
        raise DataError(f"{part.place}: one half gives paths, and the other pixels")
    names, classes = _classes(halves[0], train, validation)
    mean, std, size = PHOTOGRAPHS.mean, PHOTOGRAPHS.std, PHOTOGRAPHS.image_size
    if isinstance(train, Split) and isinstance(validation, Split):
        if train.images.shape[1:] != validation.images.shape[1:]:
            shapes = f"{list(train.images.shape[1:])} and {list(validation.images.shape[1:])}"
            raise DataError(f"{part.place}: images of the halves have the shapes {shapes}")
        size = train.images.shape[-1]
        channels = train.images.shape[1]
        mean, std = (0.0,) * channels, (1.0,) * channels
        if not train.images.is_floating_point():
            mean, std = channel_statistics(train.images)
            std = tuple(value or 1.0 for value in std)  # of a channel that is the same everywhere
    assert mean is not None
    assert std is not None
    assert size is not None
    return DataSource(
        part.name,
        train,
        validation,
        classes=classes,
        mean=mean,
        std=std,
        image_size=size,
        crop_padding=0,
        flip=isinstance(train, FileSplit),
        class_names=names,
    )


def _classes(
    half: _Half, train: Split | FileSplit, validation: Split | FileSplit
) -> tuple[tuple[str, ...], int]:
    """Return the names of classes and how many there are; no names where labels are numbers."""
    labels = [torch.as_tensor(split.labels) for split in (train, validation)]
    if labels[0].is_floating_point():
        if labels[0].ndim == 1:
            return (), 1
        count = labels[0].shape[1]
    else:
        count = 1 + max(int(each.max()) if len(each) else 0 for each in labels)
    said = getattr(half, "classes", None)
    named = said if isinstance(said, list | tuple) and len(said) >= count else range(count)
    names = tuple(map(str, named))
    return names, len(names)


def _split_of(part: Part, half: _Half) -> Split | FileSplit:
    """Read one half.

    Raises:
        DataError: If an item is no image with a label, or unlike the others.
    """
    images: list[Tensor] = []
    paths: list[Path] = []
    labels: list[object] = []
    for index in range(_length(part, half)):
        item = _item(part, half, index)
        labels.append(_label(part, item.label, index))
        if isinstance(item.image, str | Path):
            paths.append(Path(item.image))
        else:
            images.append(_pixels(part, item.image, index, images))
        if paths and images:
            raise DataError(f"{part.place}: item {index} gives pixels or a path unlike the others")
    target = _labels(part, labels)
    if paths:
        plain = target if target.is_floating_point() else target.tolist()
        return FileSplit(paths, cast("list[int] | Tensor", plain))
    empty = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    return Split(torch.stack(images) if images else empty, target)


def _length(part: Part, half: _Half) -> int:
    return cast(int, _of_users(part, lambda: len(half)))


def _item(part: Part, half: _Half, index: int) -> _Item:
    found = _of_users(part, lambda: half[index])
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise DataError(f"{part.place}: item {index} is no pair of an image and its label")
    return _Item(*found)


def _of_users(part: Part, call: Callable[[], object]) -> object:
    """Return what a user's code gives; what it raises is shown with its line."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise DataError(str(part.error(error))) from error


def _pixels(part: Part, image: object, index: int, others: list[Tensor]) -> Tensor:
    """Return an image as uint8 [C, H, W], or as float32 where it has no pixels of 0 to 255."""
    if isinstance(image, Image):
        mode = GREY if image.mode in ("1", "L", "I;16") else RGB
        image = np.array(image.convert(mode))
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3:
            image = image.transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        kind = type(image).__name__
        why = "an image is a PIL.Image, an array, a tensor or a path"
        raise DataError(f"{part.place}: item {index} has an image of {kind}; {why}")
    made = image[None] if image.ndim == 2 else image
    made = made.float() if made.is_floating_point() else made
    shape = list(made.shape)
    if made.ndim != 3 or made.dtype not in (torch.uint8, torch.float32):
        why = "uint8 [C, H, W], or floats that are taken as they are"
        raise DataError(f"{part.place}: item {index} is {image.dtype} {shape}; needed is {why}")
    if shape[1] != shape[2]:
        why = "let it give square images, or paths, which qtool resizes"
        raise DataError(f"{part.place}: item {index} has {shape[1]} x {shape[2]} pixels; {why}")
    if others and (made.shape, made.dtype) != (others[0].shape, others[0].dtype):
        first = f"{others[0].dtype} {list(others[0].shape)}"
        why = f"unlike the first, {first}; let all be alike, or give paths, which qtool resizes"
        raise DataError(f"{part.place}: item {index} is {made.dtype} {shape}, {why}")
    return made.contiguous()


def _label(part: Part, label: object, index: int) -> object:
    """Return a label as a number, or a list of 0 and 1."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        label = label.tolist()
    numbers = label if isinstance(label, list | tuple) else [label]
    if all(isinstance(n, int | float) for n in numbers) and numbers:
        return label
    why = "a label is a number of a class, or 0 or 1 for each class"
    raise DataError(f"{part.place}: item {index} has the label {label!r:.40}; {why}")


def _labels(part: Part, labels: list[object]) -> Tensor:
    """Return labels as int64 [N], as float32 [N] where they are numbers, or [N, classes]."""
    try:
        made = torch.tensor(labels)
    except (ValueError, TypeError) as error:
        raise DataError(f"{part.place}: labels are unlike each other: {error}") from error
    if made.ndim > 1 or made.is_floating_point():
        return made.float()
    return made.to(torch.int64)

"""How training images are varied by what a recipe lists: transforms by name, mixup and cutmix.

Transforms are those of torchvision.transforms.v2, or the user's own. What one draws at random
depends on seed, epoch and the image's place in the data set alone, on every device and with any
number of workers, so that a run that goes on sees what it would have seen.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache

import numpy as np
import torch
from torch import Tensor

from qtool.data.mixing import MIXES, Mix
from qtool.data.user_transforms import stand_in, users_transform
from qtool.errors import DataError, QtoolError
from qtool.problems import Problem, did_you_mean, shown
from qtool.settings.section import Choice
from qtool.settings.user_parts import is_users

OWN = "default"  # the data set's own crops and flips
# Of torchvision.transforms.v2, those that take an image and give one of the same kind; JPEG goes
# with torchvision's codecs, which 0.29 says will be removed.
TRANSFORMS = (
    *("AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ElasticTransform", "GaussianBlur"),
    *("GaussianNoise", "Grayscale", "Pad", "RandAugment", "RandomAdjustSharpness"),
    *("RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop"),
    *("RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip"),
    *("RandomInvert", "RandomPerspective", "RandomPhotometricDistort", "RandomPosterize"),
    *("RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize"),
    *("RandomSolarize", "RandomVerticalFlip", "RandomZoomOut", "Resize", "ScaleJitter"),
    "TrivialAugmentWide",
)
SIZES = ("size", "min_size", "target_size")  # parameters of those that set an image's size
STREAM = 1  # of random numbers: those of crops and flips are others
Transform = Callable[[Tensor], object]


class _Augmentations:
    """The table of what a list may name; torchvision is loaded where a transform of it is asked."""

    def names(self) -> list[str]:
        """Return the names."""
        return [OWN, *MIXES.names(), *TRANSFORMS]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def problems(self, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return every (parameter, what is wrong with it); `""` stands for the name itself."""
        if name not in self:
            known = did_you_mean(name, self.names())
            return [("", f"unknown augmentation {shown(name)}{known}")]
        if name in MIXES:
            return MIXES.problems(name, params)
        known = {} if name == OWN else dict(inspect.signature(_class_of(name)).parameters)
        unknown = [
            (key, f"{name} has no parameter {key}{did_you_mean(key, known) if known else ''}")
            for key in params
            if key not in known
        ]
        missing = [
            (key, f"missing; {name} needs it")
            for key, parameter in known.items()
            if parameter.default is parameter.empty and key not in params and key != "size"
        ]
        if unknown or missing or name == OWN:
            return unknown + missing
        try:
            _made(name, params, image_size=32)
        # each of torchvision's classes refuses values in its own way
        except Exception as error:
            return [("", f"{name}: {_first_line(error)}")]
        return []


AUGMENTATIONS = _Augmentations()


@cache
def _class_of(name: str) -> type[torch.nn.Module]:
    from torchvision.transforms import v2

    found = getattr(v2, name, None)
    if found is None:
        raise DataError(f"data.augment: this version of torchvision has no {name}")
    return found


def _made(name: str, params: Mapping[str, object], image_size: int) -> Transform:
    """Return one of torchvision's transforms; `size`, where it takes one, is that of the image."""
    kind = _class_of(name)
    known = inspect.signature(kind).parameters
    given = {
        key: type(known[key].default)(value) if isinstance(known[key].default, Enum) else value
        for key, value in params.items()
    }
    if "size" in known:
        given = {"size": (image_size, image_size)} | given
    return kind(**given)


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training image, in order, and to batches of them.

    Attributes:
        steps: names and what takes an image, uint8 [C, H, W], and gives one.
        image_size: height and width of what the last one must give, pixels.
        own: the data set's own crops and flips come first.
        sized: steps crop or resize by themselves, and see whole photographs.
        mixes: of which one is done to each batch.
    """

    steps: tuple[tuple[str, Transform], ...]
    image_size: int
    own: bool = False
    sized: bool = False
    mixes: tuple[Mix, ...] = ()

    def loaded(self) -> "Augmentation":
        """Return the same without what stands in for transforms whose files were not run."""
        steps = tuple(pair for pair in self.steps if pair[1] is not stand_in)
        return self if len(steps) == len(self.steps) else replace(self, steps=steps)

    def one(self, image: Tensor, *numbers: int) -> Tensor:
        """Vary an image, uint8 [C, H, W], by random numbers that depend on `numbers` >= 0 alone.

        Raises:
            DataError: If a step fails, or the last one gives something else than an image of
                `image_size`.
        """
        if not self.steps:
            return image
        with _random_numbers_kept():
            return self._one(image, numbers)

    def batch(self, images: Tensor, seed: int, epoch: int, indices: Sequence[int]) -> Tensor:
        """Vary images, uint8 [B, C, H, W], each by its own place in the data set.

        It is done on the CPU, whose random numbers are the same beside every device.
        """
        if not self.steps or not indices:
            return images
        with _random_numbers_kept():
            varied = [
                self._one(image, (seed, epoch, index))
                for image, index in zip(images.cpu(), indices, strict=True)
            ]
        return torch.stack(varied).to(images.device)

    def _one(self, image: Tensor, numbers: Sequence[int]) -> Tensor:
        _draw_from(*numbers, STREAM)
        made: object = image
        for name, step in self.steps:
            try:
                made = step(made if isinstance(made, Tensor) else image)
            except QtoolError:
                raise
            # each of torchvision's transforms refuses images in its own way
            except Exception as error:
                raise DataError(f"data.augment: {name}: {_first_line(error)}") from error
            if not isinstance(made, Tensor) or made.dtype != torch.uint8 or made.ndim != 3:
                what = type(made).__name__
                if isinstance(made, Tensor):
                    what = f"{made.dtype} {list(made.shape)}"
                raise DataError(
                    f"data.augment: {name} gives {what}; needed is an image, uint8 [C, H, W]"
                )
        assert isinstance(made, Tensor)
        wanted = (image.shape[0], self.image_size, self.image_size)
        if made.shape != wanted:
            hint = "" if made.shape[1:] == wanted[1:] else "; RandomCrop or Resize gives that size"
            raise DataError(
                f"data.augment: images are {list(made.shape)} after {self.steps[-1][0]}; needed "
                f"are {list(wanted)}{hint}"
            )
        return made


def augmentation_of(
    *, chosen: bool | Sequence[Choice], image_size: int, channels: int
) -> Augmentation:
    """Return what a recipe's `data.augment` asks for.

    Args:
        chosen: true for the data set's own crops and flips, false for nothing, or a list.
        image_size: height and width of what the network sees, pixels.
        channels: of images, before grey is repeated.

    Raises:
        DataError: If a transform fails on an image of that size.
    """
    if isinstance(chosen, bool):
        return Augmentation((), image_size, own=chosen)
    steps: list[tuple[str, Transform]] = []
    mixes, sized = list[Mix](), False
    for choice in chosen:
        if choice.name in MIXES:
            mixes.append(MIXES.build(choice.name, **choice.params))
        elif is_users(choice.name):
            steps.append((choice.name, users_transform(choice.name, choice.params)))
        elif choice.name != OWN:
            steps.append((choice.name, _made(choice.name, choice.params, image_size)))
            known = inspect.signature(_class_of(choice.name)).parameters
            sized = sized or any(key in known for key in SIZES)
    own = any(choice.name == OWN for choice in chosen)
    made = Augmentation(tuple(steps), image_size, own, sized and not own, tuple(mixes))
    if made.loaded() is made:
        made.one(torch.zeros(channels, image_size, image_size, dtype=torch.uint8), 0)
    return made


def list_problems(chosen: Sequence[Choice]) -> list[Problem]:
    """Return what is wrong with a list whose members are right by themselves."""
    names = [choice.name for choice in chosen]
    if OWN in names[1:]:
        return [(str(names.index(OWN, 1)), f"{OWN} comes first, and once")]
    return []


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Give all that transforms may draw from back as it was."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _draw_from(*numbers: int) -> None:
    """Let whatever is drawn on the CPU from here on depend on `numbers` only."""
    wide, narrow = np.random.SeedSequence(numbers).generate_state(2, np.uint64).tolist()
    torch.default_generator.manual_seed(wide)
    random.seed(narrow)
    np.random.seed(narrow % 2**32)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

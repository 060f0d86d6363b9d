"""How a picture becomes what a network takes: resized, cut, scaled to mean 0 and deviation 1.

This is the one definition of it. Validation follows it, `qtool predict` does what it says, and an
exported file holds it as JSON (`qtool.preprocess`) or as operators of its graph. Pillow resizes: a
triangle whose width grows with the reduction, first along rows, then along columns, each rounded to
whole grey levels; torch, in validation, does the same with weights of fewer bits.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Pixels = NDArray[np.uint8]
Prepared = NDArray[np.float32]

OF_CROP = 256 / 224  # the shorter side before the centre is cut out, over what is cut


class Resize(BaseModel):
    """To which size a picture is resized."""

    model_config = ConfigDict(frozen=True)

    rule: Literal["shorter_side", "squeeze"]
    """shorter_side: that side has `pixels`, the other follows; squeeze: to the size, whatever the
    aspect."""
    pixels: PositiveInt
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: Literal[True] = True


class Preprocess(BaseModel):
    """What is done to a picture before a network sees it; frozen."""

    model_config = ConfigDict(frozen=True)

    mean: tuple[float, ...] = Field(min_length=1)
    """Per channel of the network, of values 0..1."""
    std: tuple[float, ...]
    size: tuple[PositiveInt, PositiveInt]
    """Height and width of what the network sees, pixels."""
    resize: Resize
    crop: Literal["center", "none"]
    channels: Literal["RGB", "gray"]
    """Of the picture; gray is repeated where the network has more."""
    scale: Literal[255] = 255

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse what no picture could be prepared by."""
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError("std needs as many values as mean, each more than 0")
        if self.channels == "RGB" and len(self.mean) != len("RGB"):
            raise ValueError(f"RGB has 3 channels, and mean {len(self.mean)} values")
        cut = self.resize.rule == "shorter_side" and self.crop == "center"
        if not cut and (self.resize.rule == "shorter_side" or self.crop == "center"):
            raise ValueError("shorter_side goes with crop: center, squeeze with crop: none")
        if cut and self.resize.pixels < max(self.size):
            raise ValueError("the shorter side has fewer pixels than what is cut out")
        return self

    @property
    def depth(self) -> int:
        """How many values a decoded pixel has: 3, or 1 for gray."""
        return len("RGB") if self.channels == "RGB" else 1

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a picture of `height` x `width` is resized to."""
        if self.resize.rule == "squeeze":
            return self.size
        pixels, shorter = self.resize.pixels, min(height, width)
        return pixels * height // shorter, pixels * width // shorter

    def resized(self, picture: Image.Image) -> Image.Image:
        """Return a picture at the size that the network sees."""
        rows, columns = self.size
        height, width = self.resized_size(picture.height, picture.width)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop == "none":
            return picture
        top, left = self.corner(height, width)
        return picture.crop((left, top, left + columns, top + rows))

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return the top row and left column of what is cut from a resized picture."""
        rows, columns = self.size
        # half to even, as torchvision's CenterCrop
        return round((height - rows) / 2), round((width - columns) / 2)

    def pixels(self, picture: Image.Image) -> Pixels:
        """Return a decoded picture as an array [H, W, C], as it is."""
        return np.asarray(picture).reshape(picture.height, picture.width, self.depth)

    def normalized(self, pixels: Pixels) -> Prepared:
        """Return pixels [..., H, W, C] as what a network takes, [..., channels, H, W]."""
        last = (pixels.astype(np.float32) - self.scaled(self.mean)) / self.scaled(self.std)
        return np.ascontiguousarray(np.moveaxis(last, -1, -3), dtype=np.float32)

    def scaled(self, values: tuple[float, ...]) -> Prepared:
        """Return mean or std in grey levels, [channels]."""
        return (np.float32(self.scale) * np.asarray(values, np.float32)).astype(np.float32)

    def prepared(self, picture: Image.Image) -> Prepared:
        """Return a decoded picture as what a network takes, [channels, H, W]."""
        return self.normalized(self.pixels(self.resized(picture)))


def center_of_shorter_side(
    size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Preprocess:
    """Return how photographs are prepared: the shorter side resized, `size` pixels cut out."""
    return Preprocess(
        mean=mean,
        std=std,
        size=(size, size),
        resize=Resize(rule="shorter_side", pixels=round(size * OF_CROP)),
        crop="center",
        channels="RGB",
    )


def squeezed(
    size: int, mean: tuple[float, ...], std: tuple[float, ...], *, gray: bool
) -> Preprocess:
    """Return how pictures of one size are prepared: resized to `size` x `size` pixels."""
    return Preprocess(
        mean=mean,
        std=std,
        size=(size, size),
        resize=Resize(rule="squeeze", pixels=size),
        crop="none",
        channels="gray" if gray else "RGB",
    )

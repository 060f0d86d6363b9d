"""One image file: decode it, and cut from it what a network is shown.

For training, a random box; for validation, the centre, by the rule of `qtool.images.preprocess`,
which torch follows in half of Pillow's time: one level off in 0.2 % of a photograph's numbers.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.nn import functional as nn_functional

from qtool.images.files import decoded, lies_as_seen, opened, orientation_of
from qtool.images.files import read_image as read_image  # scripts take it from here, too
from qtool.images.preprocess import Pixels, center_of_shorter_side

# As in torchvision's RandomResizedCrop: Szegedy et al., 2014, arXiv:1409.4842.
CROP_AREA = (0.08, 1.0)  # share of the image
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height
CROP_ATTEMPTS = 10
UNSCALED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std, where only pixels are wanted
# A large JPEG is decoded at 1/2, 1/4 or 1/8 where its crop keeps so many pixels for each one that
# is shown, per side; 2 is Pillow's own choice (reducing_gap) in thumbnails.
DRAFT_MARGIN = 2
DRAFT_SCALES = (8, 4, 2)

# EXIF's orientations whose rows are stored as columns, and the axes of [C, H, W] to flip then.
SIDEWAYS = (5, 6, 7, 8)
FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}

Box = tuple[float, float, float, float]  # left, top, right, bottom; pixels


def centre_crop(path: Path, size: int) -> Image.Image:
    """Decode an image file, resize its shorter side to `size` * 256 / 224 and cut the middle.

    Returns:
        The `size` x `size` pixels in the middle, RGB.

    Raises:
        DataError: As `read_image`.
    """
    return Image.fromarray(centre_pixels(path, size))


def centre_pixels(path: Path, size: int) -> Pixels:
    """Return what `centre_crop` does, as an array [H, W, 3]."""
    rule = center_of_shorter_side(size, *UNSCALED)
    whole = whole_pixels(path)
    height, width = rule.resized_size(*whole.shape[-2:])
    if (height, width) != whole.shape[-2:]:
        # bytes stay bytes, rounded along rows and then along columns, as Pillow has it
        whole = nn_functional.interpolate(
            whole[None], (height, width), mode="bilinear", antialias=True
        )[0]
    top, left = rule.corner(height, width)
    return whole[:, top : top + size, left : left + size].permute(1, 2, 0).numpy()


def whole_pixels(path: Path) -> Tensor:
    """Decode an image file as people see it, RGB, uint8 [3, H, W].

    JPEGs by torchvision, to the same pixels as Pillow in two thirds of the time or less; what that
    refuses, and all else, by Pillow, so that the same files are readable here and there.

    Raises:
        DataError: As `read_image`.
    """
    with opened(path) as image:
        if isinstance(image, JpegImageFile) and image.mode in ("RGB", "L"):
            pixels = _by_torchvision(torch.from_numpy(np.fromfile(path, np.uint8)))
            if pixels is not None:
                return _upright(pixels, orientation_of(image))
        return torch.from_numpy(np.array(decoded(image, path))).permute(2, 0, 1)


def _by_torchvision(held: Tensor) -> Tensor | None:
    """Decode the bytes of a JPEG, RGB, uint8 [3, H, W]; None where torchvision does not."""
    with warnings.catch_warnings():
        # torchvision 0.29 says that it will do so no more one day: then Pillow does
        warnings.simplefilter("ignore")
        try:
            from torchvision.io import ImageReadMode, decode_jpeg

            pixels = decode_jpeg(held, ImageReadMode.RGB)
        except (ImportError, RuntimeError):
            return None
    return pixels if isinstance(pixels, Tensor) else None  # a list of several files' only


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn pixels [C, H, W] as the value of EXIF's tag says."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(FLIPPED.get(orientation, ()))


def random_crop(path: Path, size: int, generator: torch.Generator) -> Image.Image:
    """Decode a random box of an image file, resized to `size` x `size` pixels, RGB.

    Raises:
        DataError: As `read_image`.
    """
    with opened(path) as image:
        # Other formats may learn how they are turned, and so their size, only as they decode.
        as_it_lies = isinstance(image, JpegImageFile) and lies_as_seen(image)
        whole = image if as_it_lies else decoded(image, path)
        box = random_box(whole.width, whole.height, generator)
        scale = _decode_smaller(whole, box, size)
        whole = decoded(whole, path) if as_it_lies else whole
    left, top, right, bottom = (side / scale for side in box)
    return whole.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def _decode_smaller(image: Image.Image, box: Box, size: int) -> int:
    """Have a JPEG decode at 1 / scale where `box` is to be shown much smaller; return the scale.

    The decoder then skips the inverse DCT's high frequencies, and most of the work on pixels.
    """
    left, top, right, bottom = box
    spare = min(right - left, bottom - top) / (DRAFT_MARGIN * size)
    scale = next((scale for scale in DRAFT_SCALES if scale <= spare), 1)
    if scale == 1 or not isinstance(image, JpegImageFile):
        return 1
    drafted = image.draft(image.mode, (image.width // scale, image.height // scale))
    return scale if drafted else 1


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

"""Image files: decoded, turned as their EXIF data say, and found in folders."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from qtool.errors import DataError
from qtool.files.kinds import Kind, suffixes_of

SUFFIXES = set(suffixes_of(Kind.IMAGE))
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of SUFFIXES, whatever a file is called
MOST_PIXELS = 100_000_000
ORIENTATION = 0x0112  # EXIF tag: 1 as it lies, 2 to 8 mirrored or turned
Channels = Literal["RGB", "gray"]


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder and in those below it, sorted; hidden ones are not."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_image(path: Path, channels: Channels = "RGB") -> Image.Image:
    """Decode an image file, 8 bits per channel, as people see it.

    Raises:
        DataError: If it is missing, damaged, or holds more than 8 bits per channel.
    """
    with opened(path) as image:
        return decoded(image, path, channels)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file of a known format, of which only the header is read so far.

    Formats that others may decode by running programs, as Pillow does PostScript, are not tried.

    Raises:
        DataError: If it is missing, damaged, of another format, or has more than MOST_PIXELS; also
            in place of what goes wrong while it is used.
    """
    with named_errors(path), warnings.catch_warnings():
        # Pillow warns a little before what is refused here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError as error:
            if not path.stat().st_size:
                raise DataError(f"{path}: cannot be read as an image, for it is empty") from error
            known = ", ".join(FORMATS)
            raise DataError(f"{path}: cannot be read as an image of {known}") from error
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: has more than {MOST_PIXELS:,} pixels") from error
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{path}: has more than {MOST_PIXELS:,} pixels")
            yield image


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a `DataError` that names it."""
    try:
        yield
    except DataError:
        raise
    # Each of Pillow's formats fails on damaged files in its own way.
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path}: cannot be read as an image ({reason})") from error


def decoded(image: Image.Image, path: Path, channels: Channels = "RGB") -> Image.Image:
    """Return an opened image, turned as its EXIF data say, with the channels that are wanted.

    Transparency is dropped; gray is the luma of ITU-R 601.

    Raises:
        DataError: If it holds more than 8 bits per channel.
    """
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        raise DataError(f"{path}: has more than 8 bits per channel; save it with 8")
    upright = image if lies_as_seen(image) else ImageOps.exif_transpose(image)
    mode = "RGB" if channels == "RGB" else "L"
    if upright.mode == mode and "transparency" not in upright.info:
        return upright
    # Pillow warns when transparent palettes are turned into RGB directly.
    opaque = upright.convert("RGBA") if "transparency" in upright.info else upright
    return opaque.convert(mode)


def lies_as_seen(image: Image.Image) -> bool:
    """Tell whether an image's rows are those that people see, or its EXIF data say otherwise."""
    return orientation_of(image) == 1


def orientation_of(image: Image.Image) -> int:
    """Return how an image lies by its EXIF data, 1..8; 1, as people see it, where they say none."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    # Pillow parses EXIF data with errors of many kinds; damaged ones say nothing.
    except Exception:
        return 1
    return found if found in range(2, 9) else 1

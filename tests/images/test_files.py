"""Image files as people see them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qtool.data.image_files import centre_crop, random_crop
from qtool.errors import DataError
from qtool.images.files import images_in, read_image

# Of EXIF: how an image that was stored so is turned by numpy into what people see.
SEEN = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_turns_an_image(orientation: int, suffix: str, tmp_path: Path) -> None:
    plain = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, flat = tmp_path / f"turned.{suffix}", tmp_path / f"flat.{suffix}"
    Image.fromarray(plain).save(path, exif=exif, quality=95)
    Image.fromarray(plain).save(flat, quality=95)
    stored = np.asarray(Image.open(flat).convert("RGB"))

    seen = np.asarray(read_image(path))
    np.testing.assert_array_equal(seen, SEEN[orientation](stored))
    upright = tmp_path / "upright.png"
    Image.fromarray(seen).save(upright)
    assert centre_crop(path, 20).tobytes() == centre_crop(upright, 20).tobytes()
    crops = [random_crop(p, 60, torch.Generator().manual_seed(1)) for p in (path, upright)]
    assert crops[0].tobytes() == crops[1].tobytes()


def test_damaged_exif_data_say_nothing(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4))
    picture.save(tmp_path / "x.jpg", exif=b"Exif\x00\x00nonsense")
    assert read_image(tmp_path / "x.jpg").size == (6, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_every_mode_become_gray(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    white = Image.new("RGB", (4, 3), "white").convert(mode)
    white.save(path)
    read = read_image(path, "gray")
    assert (read.mode, read.size) == ("L", (4, 3))
    assert np.asarray(read).min() == 255


def test_gray_is_the_luma_of_bt_601(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (200, 100, 50)).save(tmp_path / "x.png")
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert np.asarray(read_image(tmp_path / "x.png", "gray")).tolist() == [[luma]]


def test_a_folder_gives_its_images_in_order_with_those_below(tmp_path: Path) -> None:
    names = ["b.png", "a/z.JPG", "a/c.webp", ".hidden.png", "note.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in images_in(tmp_path)]
    assert found == ["a/c.webp", "a/z.JPG", "b.png"]


def test_a_deep_gray_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "deep.png", "gray")


def test_formats_that_programs_decode_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*argv: object, **_: object) -> None:
        raise AssertionError(f"a program was started: {argv}")

    monkeypatch.setattr(subprocess, "Popen", started)
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    path = tmp_path / "x.png"
    path.write_bytes(header + b"%%EOF\n")
    with pytest.raises(DataError, match=r"x\.png: cannot be read as an image of JPEG, PNG, PPM"):
        read_image(path)


@pytest.mark.parametrize("size", [(10_001, 10_000), (65_535, 65_535)])
def test_an_image_of_more_than_100_million_pixels_is_refused_by_its_header(
    size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 %d %d 255\n" % size)  # and no pixels
    with pytest.raises(DataError, match=r"x\.pgm: has more than 100,000,000 pixels"):
        read_image(path)

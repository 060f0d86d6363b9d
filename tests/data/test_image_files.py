"""One image file: every mode and damage, random boxes, and JPEGs that are decoded smaller."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qtool.data import image_files
from qtool.data.batches import seeded_generator
from qtool.data.image_files import (
    UNSCALED,
    centre_crop,
    centre_pixels,
    random_box,
    random_crop,
)
from qtool.errors import DataError
from qtool.images.files import read_image
from qtool.images.preprocess import center_of_shorter_side


def photograph(path: Path, width: int, height: int) -> Path:
    """Save waves of every length down to 3 pixels, as a photograph has them, and some noise."""
    rng = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    waves = [
        length * np.sin((across * np.cos(angle) + down * np.sin(angle)) * 6.28 / length)
        for length, angle in zip(np.geomspace(3, 200, 12), rng.uniform(0, 6.28, 12), strict=True)
    ]
    grey = 128 + 0.15 * sum(waves) + rng.normal(0, 4, (height, width))
    pixels = grey[:, :, None] * np.array([1.0, 0.9, 0.7])
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def test_names_that_scripts_import_are_there() -> None:
    assert image_files.read_image is read_image


def crop_of(path: Path, size: int = 4, seed: int = 0) -> Image.Image:
    return random_crop(path, size, seeded_generator(seed))


def exact_crop(path: Path, size: int, seed: int) -> np.ndarray:
    """Decode every pixel, then cut."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    box = random_box(*whole.size, seeded_generator(seed))
    return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize(("suffix", "size"), [("jpg", 200), ("png", 20)])
def test_crops_little_reduced_and_all_but_jpegs_keep_every_pixel(
    suffix: str, size: int, tmp_path: Path
) -> None:
    path = photograph(tmp_path / f"x.{suffix}", 500, 375)
    for seed in range(5):
        assert crop_of(path, size, seed).tobytes() == exact_crop(path, size, seed).tobytes()


@pytest.mark.parametrize(("size", "scales"), [(40, {1, 2, 4}), (12, {4, 8})])
def test_a_much_reduced_jpeg_decodes_smaller_and_looks_the_same(
    size: int, scales: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photograph(tmp_path / "x.jpg", 501, 377)
    decoded: list[int] = []
    monkeypatch.setattr(
        image_files,
        "decoded",
        lambda image, path: decoded.append(round(501 / image.width)) or image.convert("RGB"),
    )
    for seed in range(8):
        found = np.asarray(crop_of(path, size, seed)).astype(float)
        difference = np.abs(found - exact_crop(path, size, seed))
        assert difference.mean() < 1.5
        left, top, right, bottom = random_box(501, 377, seeded_generator(seed))
        assert min(right - left, bottom - top) / decoded[-1] >= size * min(2, decoded[-1])
    assert set(decoded) == scales


def pillows_crop(path: Path, size: int) -> np.ndarray:
    """Cut the centre as `qtool predict` does."""
    return np.asarray(center_of_shorter_side(size, *UNSCALED).resized(read_image(path)))


@pytest.mark.parametrize(("size", "share"), [(20, 0.004), (200, 0.003), (329, 0.0)])
def test_validation_sees_what_prediction_sees_but_for_a_level_here_and_there(
    size: int, share: float, tmp_path: Path
) -> None:
    path = photograph(tmp_path / "x.jpg", 500, 376)  # 329 * 256 / 224 = 376: not resized
    off = np.abs(centre_pixels(path, size).astype(int) - pillows_crop(path, size))
    assert off.max() <= 1
    assert (off > 0).mean() <= share
    assert np.asarray(centre_crop(path, size)).tobytes() == centre_pixels(path, size).tobytes()


HALF = 56  # a picture of 64 pixels is not resized for it: 56 * 256 / 224 = 64


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_torchvision_decodes_to_the_pixels_that_pillow_decodes_to(
    mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    photograph(tmp_path / "plain.png", 64, 64)
    path = tmp_path / "x.jpg"
    with Image.open(tmp_path / "plain.png") as image:
        image.convert(mode).save(path, quality=85, **options)
    np.testing.assert_array_equal(centre_pixels(path, HALF), pillows_crop(path, HALF))


def test_where_torchvision_decodes_nothing_pillow_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photograph(tmp_path / "x.jpg", 64, 64)
    whole = centre_pixels(path, HALF)

    def no_decoder(*_: object) -> None:
        raise RuntimeError("torchvision was built without libjpeg")

    monkeypatch.setattr("torchvision.io.decode_jpeg", no_decoder)
    np.testing.assert_array_equal(centre_pixels(path, HALF), whole)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    np.testing.assert_array_equal(centre_pixels(path, HALF), whole)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (1, 1), (400, 2), (2, 400)])
def test_random_boxes_lie_in_the_image(width: int, height: int) -> None:
    boxes = [random_box(width, height, seeded_generator(seed)) for seed in range(100)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_random_boxes_have_the_areas_and_aspects_published() -> None:
    boxes = [random_box(1000, 1000, seeded_generator(seed)) for seed in range(400)]
    areas = [(right - left) * (bottom - top) / 1e6 for left, top, right, bottom in boxes]
    aspects = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert 0.079 < min(areas) < 0.12
    assert max(areas) > 0.85
    assert 0.74 < min(aspects) < 0.77
    assert 1.3 < max(aspects) < 1.35


def test_images_cut_short_or_missing_are_data_errors(tmp_path: Path) -> None:
    for name in ("short.png", "short.jpg"):
        whole = photograph(tmp_path / name, 40, 60).read_bytes()
        (tmp_path / name).write_bytes(whole[:500])
        for read in (read_image, crop_of, lambda path: centre_pixels(path, 4)):
            with pytest.raises(DataError, match=f"{name}: cannot be read"):
                read(tmp_path / name)
            with pytest.raises(DataError, match="no such file"):
                read(tmp_path / "gone.png")


def test_images_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    for read in (read_image, crop_of):
        with pytest.raises(DataError, match="more than 8 bits per channel"):
            read(tmp_path / "deep.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    transparency: dict[str, Any] = {"transparency": b"\x00\x80"} if mode == "P" else {}
    Image.new(mode, (4, 4)).save(path, **transparency)
    assert read_image(path).mode == "RGB"
    assert crop_of(path).mode == "RGB"

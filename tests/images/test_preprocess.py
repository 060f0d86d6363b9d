"""The rule by which pictures become inputs: as torchvision has it, and as files hold it."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import v2

from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import DataSource, Split
from qtool.images.preprocess import Preprocess, center_of_shorter_side, squeezed
from qtool.images.usage import Usage

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return made if channels == 3 else made[..., 0]


@pytest.mark.parametrize(("height", "width"), [(60, 81), (81, 60), (40, 40), (16, 90), (33, 34)])
def test_photographs_are_prepared_as_torchvision_prepares_them(height: int, width: int) -> None:
    picture = Image.fromarray(noise(height, width))
    rule = center_of_shorter_side(28, *IMAGENET)
    torchvision = v2.Compose(
        [
            v2.Resize(32),
            v2.CenterCrop(28),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*IMAGENET),
        ]
    )
    expected = torchvision(picture)
    made = rule.prepared(picture)
    assert made.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(made), expected, rtol=0, atol=1e-6)
    assert rule.resized(picture).size == (28, 28)


def in_memory(images: torch.Tensor, size: int) -> Loaders:
    half = Split(images, torch.zeros(len(images), dtype=torch.int64))
    channels = images.shape[1]
    source = DataSource(
        "digits",
        half,
        half,
        classes=1,
        mean=(0.3, 0.4, 0.5)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        image_size=images.shape[-1],
        crop_padding=0,
        flip=False,
    )
    return make_loaders(
        source,
        batch_size=64,
        image_size=size,
        channels=3,
        train_samples=None,
        seed=0,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "shown", "most", "share"),
    [
        (8, 28, 2, 0.08),
        (32, 20, 1, 0.03),
        (64, 31, 1, 0.005),
        (8, 16, 0, 0),
        (28, 32, 0, 0),
        (16, 16, 0, 0),
    ],
)
def test_validation_and_prediction_differ_by_rounding_only(
    channels: int, size: int, shown: int, most: int, share: float
) -> None:
    """Images in memory are resized by torch, on the device; files and predictions by Pillow.

    Noise is the worst there is; digits differ by one level in 5 % of the pixels at 28 pixels, and
    nowhere at 16 and 32.
    """
    pictures = [noise(size, size, channels, seed) for seed in range(40)]
    stacked = torch.from_numpy(np.stack(pictures)).reshape(40, size, size, channels)
    loaders = in_memory(stacked.permute(0, 3, 1, 2).contiguous(), shown)
    rule = loaders.preprocess
    assert rule is not None
    assert (rule.channels, rule.depth, len(rule.mean)) == (
        "gray" if channels == 1 else "RGB",
        channels,
        3,
    )
    given = next(loaders.validation.batches(0))[0].numpy()
    made = np.stack([rule.prepared(Image.fromarray(picture)) for picture in pictures])
    levels = np.abs(made - given) * rule.scaled(rule.std).reshape(3, 1, 1)
    assert levels.max() <= most + 1e-3
    assert (levels > 0.5).mean() <= share


def test_the_rule_is_written_with_the_names_that_scripts_read() -> None:
    rule = center_of_shorter_side(224, *IMAGENET)
    said = json.loads(Usage(("cat", "dog"), rule).metadata()["qtool.preprocess"])
    assert said == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [224, 224],
        "resize": {
            "rule": "shorter_side",
            "pixels": 256,
            "interpolation": "bilinear",
            "antialias": True,
        },
        "crop": "center",
        "channels": "RGB",
        "scale": 255,
    }
    assert json.loads(Usage(("cat", "dog")).metadata()["qtool.classes"]) == ["cat", "dog"]


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(("Größe", "猫")),
        Usage(("a",), squeezed(28, (0.1,), (0.2,), gray=True)),
        Usage((), center_of_shorter_side(64, *IMAGENET)),
        Usage(("a", "b"), None, several=True),
    ],
)
def test_what_a_file_says_is_read_back(usage: Usage) -> None:
    assert Usage.of(usage.metadata()) == usage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0.1, 0.1]}, "as many values as mean"),
        ({"std": [0.1, 0.1, 0.0]}, "more than 0"),
        ({"mean": [0.1], "std": [0.1]}, "RGB has 3 channels"),
        ({"crop": "none"}, "shorter_side goes with crop: center"),
        ({"resize": {"rule": "shorter_side", "pixels": 10}}, "fewer pixels than what is cut out"),
        ({"resize": {"rule": "longer_side", "pixels": 32}}, "shorter_side"),
        ({"scale": 1}, "255"),
    ],
)
def test_a_rule_that_fits_no_picture_is_refused(changes: dict[str, Any], message: str) -> None:
    rule = center_of_shorter_side(28, *IMAGENET).model_dump()
    with pytest.raises(ValidationError, match=message):
        Preprocess.model_validate(rule | changes)

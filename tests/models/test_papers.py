"""qtool's own networks: shapes and parameter counts worked out by hand."""

import pytest
import torch

from qtool.errors import RecipeError
from qtool.models.papers import MODELS


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_gives_one_logit_per_class(name: str) -> None:
    model = MODELS[name](7, 3, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_lenet5_has_the_parameters_of_the_paper() -> None:
    by_hand = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert sum(p.numel() for p in MODELS["lenet5"](10, 1, 28).parameters()) == by_hand == 61_706


@pytest.mark.parametrize("image_size", [12, 13, 16, 28, 33])
def test_lenet5_takes_its_sizes_from_the_images(image_size: int) -> None:
    model = MODELS["lenet5"](10, 1, image_size)
    assert model(torch.zeros(1, 1, image_size, image_size)).shape == (1, 10)


def test_lenet5_says_how_large_images_must_be() -> None:
    with pytest.raises(RecipeError, match=r"at least 12 pixels, got 11; set data\.image_size"):
        MODELS["lenet5"](10, 1, 11)


def test_resnet20_has_the_parameters_of_the_original() -> None:
    convolutions = 27 * 16 + 6 * 9 * 16**2
    convolutions += 9 * (16 * 32 + 5 * 32**2) + 9 * (32 * 64 + 5 * 64**2)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    by_hand = convolutions + norms + 64 * 10 + 10
    assert sum(p.numel() for p in MODELS["resnet20"](10, 3, 32).parameters()) == by_hand == 269_722


@pytest.mark.parametrize("shortcut", ["average_pool", "subsample"])
def test_a_shortcut_of_resnet20_halves_the_size_and_adds_channels_of_zeros(shortcut: str) -> None:
    block = MODELS["resnet20"](10, 3, 32, shortcut=shortcut).get_submodule("layer2.0")
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    found = block.shortcut(x)
    assert found.shape == (1, 32, 4, 4)
    assert not found[:, :8].any()
    assert not found[:, 24:].any()
    corners = x[:, :, ::2, ::2]
    means = (corners + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    expected = means if shortcut == "average_pool" else corners
    assert torch.allclose(found[:, 8:24], expected)


def test_resnet20_says_which_sizes_it_takes() -> None:
    with pytest.raises(RecipeError, match=r"30 is no multiple of 4; set data\.image_size"):
        MODELS["resnet20"](10, 3, 30)

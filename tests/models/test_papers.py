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

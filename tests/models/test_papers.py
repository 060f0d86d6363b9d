"""qtool's own networks: shapes and parameter counts worked out by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from qtool.errors import RecipeError
from qtool.models.papers import MODELS

NEEDED = {"two_linear_layers": {"columns": 3 * 32 * 32}}  # parameters without a default


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_gives_one_logit_per_class(name: str) -> None:
    model = MODELS.build(name, **NEEDED.get(name, {}))(7, 3, 32)
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


def test_mnist_convnet_has_the_parameters_of_its_layers() -> None:
    by_hand = (9 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 49 + 1) * 256 + (256 + 1) * 10
    assert sum(p.numel() for p in MODELS["mnist_convnet"](10, 1, 28).parameters()) == by_hand


@pytest.mark.parametrize("image_size", [4, 8, 15, 28])
def test_mnist_convnet_takes_its_sizes_from_the_images(image_size: int) -> None:
    model = MODELS["mnist_convnet"](10, 1, image_size)
    assert model(torch.zeros(1, 1, image_size, image_size)).shape == (1, 10)
    with pytest.raises(RecipeError, match=r"they need 4 pixels, got 3; set data\.image_size"):
        MODELS["mnist_convnet"](10, 1, 3)


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


def test_vgg11_has_the_parameters_of_its_configuration() -> None:
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    by_hand = sum(9 * a * b + b + 2 * b for a, b in pairwise(widths)) + 512 * 10 + 10
    assert sum(p.numel() for p in MODELS["vgg11_cifar"](10, 3, 32).parameters()) == by_hand


def test_vgg11_says_how_large_images_must_be() -> None:
    with pytest.raises(RecipeError, match=r"need 32 pixels, got 31; set data\.image_size"):
        MODELS["vgg11_cifar"](10, 3, 31)


@pytest.mark.parametrize(("name", "norms"), [("lenet5", 4), ("resnet20", 19), ("vgg11_cifar", 8)])
def test_a_fixed_batch_norm_stands_before_each_relu_and_has_no_weights(
    name: str, norms: int
) -> None:
    model = MODELS.build(name, batch_norm="fixed")(10, 3, 32)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    found = [m for m in model.modules() if isinstance(m, kinds)]
    assert len(found) == norms
    assert not any(list(norm.parameters()) for norm in found)
    if isinstance(model, nn.Sequential):
        order = list(model)
        before = [order[k - 1] for k, m in enumerate(order) if isinstance(m, nn.ReLU)]
        assert all(isinstance(m, kinds) for m in before)


def test_lenet5_without_batch_norm_has_the_weights_it_always_had() -> None:
    torch.manual_seed(0)
    plain = MODELS["lenet5"](10, 1, 28).state_dict()
    torch.manual_seed(0)
    fixed = MODELS.build("lenet5", batch_norm="fixed")(10, 1, 28).state_dict()
    assert set(plain) == {key for key in fixed if not key.startswith("bn")}
    assert all(torch.equal(value, fixed[key]) for key, value in plain.items())

"""qtool's own networks: shapes and parameter counts worked out by hand."""

from itertools import pairwise

import pytest
import torch
import torchvision
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


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)]
)
def test_small_resnets_have_the_parameters_of_the_originals(depth: int, parameters: int) -> None:
    blocks = (depth - 2) // 6
    convolutions = 27 * 16 + 2 * blocks * 9 * 16**2
    for width in (32, 64):
        convolutions += 9 * (width // 2 * width + (2 * blocks - 1) * width**2)
    norms = 2 * ((2 * blocks + 1) * 16 + 2 * blocks * (32 + 64))
    by_hand = convolutions + norms + 64 * 10 + 10
    model = MODELS[f"resnet{depth}"](10, 3, 32)
    assert sum(p.numel() for p in model.parameters()) == by_hand == parameters


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


def test_binarynet_has_the_parameters_of_the_paper_s_layers() -> None:
    widths = [3, 128, 128, 256, 256, 512, 512]
    convolutions = sum((9 * a + 1) * b + 2 * b for a, b in pairwise(widths))
    linear = sum((a + 1) * b + 2 * b for a, b in pairwise([512 * 16, 1024, 1024, 10]))
    found = sum(p.numel() for p in MODELS["binarynet"](10, 3, 32).parameters())
    assert found == convolutions + linear == 14_033_566


def test_the_width_of_binarynet_multiplies_every_channel() -> None:
    narrow = MODELS.build("binarynet", width=0.125)(10, 3, 32)
    assert [m.out_channels for m in narrow if isinstance(m, nn.Conv2d)] == [16, 16, 32, 32, 64, 64]
    assert [m.out_features for m in narrow if isinstance(m, nn.Linear)] == [128, 128, 10]


def test_binarynet_pools_before_its_batch_norms_and_ends_with_one() -> None:
    model = MODELS["binarynet"](10, 3, 32)
    names = [name for name, _ in model.named_children()]
    assert names[3:7] == ["conv2", "pool1", "bn2", "tanh2"]
    assert names[-1] == "bn9"


@pytest.mark.parametrize("image_size", [8, 9, 28, 33])
def test_binarynet_takes_its_sizes_from_the_images(image_size: int) -> None:
    model = MODELS.build("binarynet", width=0.1)(10, 1, image_size)
    assert model(torch.zeros(2, 1, image_size, image_size)).shape == (2, 10)
    with pytest.raises(RecipeError, match=r"they need 8 pixels, got 7; set data\.image_size"):
        MODELS["binarynet"](10, 1, 7)


def test_mobilenet_v1_has_the_parameters_of_the_paper() -> None:
    widths = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    separable = sum(9 * a + 2 * a + a * b + 2 * b for a, b in pairwise([32, *widths]))
    by_hand = 27 * 32 + 2 * 32 + separable + 1024 * 1000 + 1000
    found = sum(p.numel() for p in MODELS["mobilenet_v1"](1000, 3, 224).parameters())
    assert found == by_hand == 4_231_976


def test_mobilenet_v1_halves_the_images_five_times() -> None:
    model = MODELS.build("mobilenet_v1", width=0.25)(10, 3, 64).eval()
    assert model[:-3](torch.zeros(1, 3, 64, 64)).shape == (1, 256, 2, 2)


def test_resnet50_v1_differs_from_torchvision_s_in_where_its_strides_are() -> None:
    ours, theirs = MODELS["resnet50_v1"](10, 3, 64), torchvision.models.resnet50(num_classes=10)
    assert ours.load_state_dict(theirs.state_dict())
    moved = {
        name: module.stride
        for name, module in ours.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride != theirs.get_submodule(name).stride
    }
    assert moved == {
        f"layer{stage}.0.conv{k}": ((2, 2) if k == 1 else (1, 1))
        for stage in (2, 3, 4)
        for k in (1, 2)
    }
    assert MODELS["resnet50_v1"](10, 1, 64)(torch.zeros(2, 1, 64, 64)).shape == (2, 10)


def test_resnet50_v2_has_the_parameters_of_v1_but_for_its_batch_norms() -> None:
    v1, v2 = MODELS["resnet50_v1"](1000, 3, 224), MODELS["resnet50_v2"](1000, 3, 224)
    v1_norms, v2_norms = (
        sum(
            p.numel()
            for m in net.modules()
            if isinstance(m, nn.BatchNorm2d)
            for p in m.parameters()
        )
        for net in (v1, v2)
    )
    v1_all, v2_all = (sum(p.numel() for p in net.parameters()) for net in (v1, v2))
    assert v1_all == 25_557_032
    assert v2_all - v2_norms == v1_all - v1_norms


def test_a_block_of_resnet50_v2_adds_what_came_in_as_it_was() -> None:
    block = MODELS["resnet50_v2"](10, 3, 64).get_submodule("layer1.1").eval()
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(1, 256, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)

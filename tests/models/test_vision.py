"""Models by name: torchvision's, their heads, stems and published weights."""

import urllib.error
import urllib.request
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from qtool.errors import DataError, RecipeError
from qtool.models.vision import build_model, input_channels, model_names, model_problems


def logits(model: nn.Module, size: int) -> Tensor:
    return model.eval()(torch.zeros(2, 3, size, size))


def test_names_are_qtools_own_and_torchvisions() -> None:
    names = model_names()
    assert names[0] == "lenet5"
    assert {"resnet18", "mobilenet_v2", "vit_b_16", "vgg11_bn"} <= set(names)
    assert len(names) == len(set(names)) > 80


def test_torchvisions_models_need_three_channels() -> None:
    assert input_channels("resnet18") == 3
    assert input_channels("lenet5") is None


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v3_small", 32),
        ("squeezenet1_1", 32),
        ("shufflenet_v2_x0_5", 32),
        ("mnasnet0_5", 32),
        ("regnet_x_400mf", 32),
        ("efficientnet_b0", 32),
        ("densenet121", 32),
        ("googlenet", 32),
        ("inception_v3", 80),
        ("resnet18", 16),
    ],
)
def test_models_of_every_family_give_one_tensor_of_logits(name: str, size: int) -> None:
    built = build_model(name, 7, 3, size)
    assert built.note == ""
    assert built.model.training
    assert logits(built.model, size).shape == (2, 7)
    assert isinstance(built.model.train()(torch.randn(2, 3, size, size)), Tensor)


def test_a_vision_transformer_takes_the_size_of_the_images() -> None:
    assert logits(build_model("vit_b_32", 7, 3, 64).model, 64).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 32), ("inception_v3", 32), ("vit_b_32", 40), ("maxvit_t", 32)]
)
def test_images_of_a_size_the_model_cannot_take_are_a_recipe_error(name: str, size: int) -> None:
    with pytest.raises(
        RecipeError, match=f"{name} does not take images of {size} pixels"
    ) as caught:
        build_model(name, 7, 3, size)
    assert "set data.image_size" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image_size", "stem", "small"),
    [
        (32, "auto", True),
        (64, "auto", True),
        (65, "auto", False),
        (224, "small", True),
        (32, "standard", False),
    ],
)
def test_residual_networks_start_small_for_small_images(
    image_size: int, stem: Any, small: bool
) -> None:
    model: Any = build_model("resnet18", 7, 3, image_size, stem=stem).model
    conv = model.conv1
    expected = ((3, 3), (1, 1), (1, 1)) if small else ((7, 7), (2, 2), (3, 3))
    assert (conv.kernel_size, conv.stride, conv.padding) == expected
    assert isinstance(model.maxpool, nn.Identity) == small


def test_a_small_stem_keeps_the_resolution() -> None:
    model: Any = build_model("resnet18", 7, 3, 32).model
    features = model.layer1(model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32))))
    assert features.shape == (1, 64, 32, 32)


def test_the_weights_of_a_file_decide_the_stem(tmp_path: Path) -> None:
    for stem, size in (("small", 3), ("standard", 7)):
        trained = build_model("resnet18", 7, 3, 32, stem=stem).model
        torch.save(trained.state_dict(), tmp_path / "w.pt")
        for image_size in (32, 224):
            built: Any = build_model("resnet18", 7, 3, image_size, weights=str(tmp_path / "w.pt"))
            assert built.model.conv1.kernel_size == (size, size)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("resnet18", {"stem": "small"}, []),
        ("resnext50_32x4d", {"stem": "auto", "weights": "IMAGENET1K_V2"}, []),
        ("lenet5", {"weights": "/some/file"}, []),
        (
            "resnet18",
            {"stem": "tiny"},
            [("stem", "unknown choice 'tiny'; choose one of: auto, small, standard")],
        ),
        (
            "resnet18",
            {"steam": "small"},
            [("steam", "resnet18 has no parameter steam; did you mean stem?")],
        ),
        ("vgg11", {"stem": "small"}, [("stem", "vgg11 has no parameter stem; it takes none")]),
        (
            "lenet5",
            {"stem": "small"},
            [
                (
                    "stem",
                    "lenet5 has no parameter stem; choose one of: batch_norm, activation, segments",
                )
            ],
        ),
        ("resnet18", {"weights": 3}, [("weights", "3 is not text")]),
        (
            "lenet5",
            {"weights": "DEFAULT"},
            [("weights", "lenet5 has no published weights; set none or the path of a state_dict")],
        ),
        (
            "resnet18",
            {"stem": "small", "weights": "DEFAULT"},
            [
                (
                    "stem",
                    "the weights DEFAULT have the standard stem; "
                    "leave stem out or set it to standard",
                )
            ],
        ),
    ],
)
def test_problems_are_found_before_anything_is_built(
    name: str, params: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert model_problems(name, params) == expected


def test_near_misses_are_named() -> None:
    ((key, why),) = model_problems("resnet19", {})
    assert key == ""
    assert why.startswith("unknown model 'resnet19'; did you mean resnet1")
    ((_, why),) = model_problems("resnet50", {"weights": "imagenet1k_v3"})
    assert "resnet50 has no weights 'imagenet1k_v3'; did you mean IMAGENET1K_V" in why


def test_building_refuses_what_the_recipe_check_refuses() -> None:
    with pytest.raises(RecipeError, match="unknown model 'resnet'"):
        build_model("resnet", 7, 3, 32)
    with pytest.raises(RecipeError, match="lenet5 has no parameter depth"):
        build_model("lenet5", 7, 3, 32, depth=3)
    with pytest.raises(RecipeError, match="the weights DEFAULT have the standard stem"):
        build_model("resnet18", 7, 3, 32, stem="small", weights="DEFAULT")
    with pytest.raises(DataError, match=r"model\.weights: resnet18 has no weights 'IMAGENET'"):
        build_model("resnet18", 7, 3, 32, weights="IMAGENET")
    with pytest.raises(ValueError, match="resnet18 takes 3 channels, got 1"):
        build_model("resnet18", 7, 1, 32)


def test_a_failed_download_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match="no network in tests") as caught:
        build_model("resnet18", 7, 3, 224, weights="DEFAULT")
    expected = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    assert f"put that file at {expected}, or set model.weights to the path" in str(caught.value)


def publish(monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
    """Stand in for the download of any published weights."""
    monkeypatch.setattr(
        models.WeightsEnum, "get_state_dict", lambda *args, **kwargs: OrderedDict(state)
    )


def test_published_weights_keep_their_head_for_1000_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = models.squeezenet1_1().state_dict()
    publish(monkeypatch, state)
    built = build_model("squeezenet1_1", 1000, 3, 64, weights="IMAGENET1K_V1")
    assert built.note == ""
    assert all(torch.equal(value, state[key]) for key, value in built.model.state_dict().items())
    built = build_model("squeezenet1_1", 7, 3, 64, weights="DEFAULT")
    assert "its head classifier.1 has 1000 classes and the data 7" in built.note
    assert logits(built.model, 64).shape == (2, 7)


def test_googlenet_is_pretrained_without_its_auxiliary_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = models.GoogLeNet(init_weights=False, aux_logits=True).state_dict()
    publish(monkeypatch, state)
    model: Any = build_model("googlenet", 1000, 3, 64, weights="DEFAULT").model
    assert model.transform_input
    assert torch.equal(model.fc.weight, state["fc.weight"])
    assert isinstance(model(torch.randn(2, 3, 64, 64)), Tensor)


def test_densenets_published_keys_with_a_dot_too_many_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = models.densenet121().state_dict()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    for index in "12":
        for kind in ("norm", "conv"):
            old = {k.replace(f".{kind}{index}.", f".{kind}.{index}."): v for k, v in old.items()}
    assert set(old) != set(state)
    publish(monkeypatch, old)
    model = build_model("densenet121", 1000, 3, 64, weights="DEFAULT").model
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

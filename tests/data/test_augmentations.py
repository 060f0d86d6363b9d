"""Transforms by name: what they see, what they give, and that only seed, epoch and place count."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from qtool.data.augmentations import (
    AUGMENTATIONS,
    TRANSFORMS,
    Augmentation,
    augmentation_of,
)
from qtool.data.batches import seeded_generator
from qtool.data.image_files import centre_pixels, random_crop
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import DataSource, FileSplit, Split
from qtool.data.user_transforms import load_transform
from qtool.errors import DataError, RecipeError
from qtool.recipe.recipe import Recipe
from qtool.settings.section import Choice, check
from qtool.settings.user_code import UserCode

NEEDED: dict[str, dict[str, Any]] = {
    "ElasticTransform": {"sigma": 1.0},
    "GaussianBlur": {"kernel_size": 3},
    "Grayscale": {"num_output_channels": 3},
    "RandomAdjustSharpness": {"sharpness_factor": 2},
    "RandomAffine": {"degrees": 10},
    "RandomPosterize": {"bits": 3},
    "RandomRotation": {"degrees": [-10, 10], "interpolation": "bilinear"},
    "RandomSolarize": {"threshold": 128},
    "AutoAugment": {"policy": "cifar10"},
}
# These leave images of other sizes, so something must follow them.
RESIZED = {
    "Pad": {"padding": 2},
    "RandomResize": {"min_size": 20, "max_size": 40},
    "RandomShortestSize": {"min_size": [18, 24]},
    "RandomZoomOut": {},
    "ScaleJitter": {"target_size": [30, 30]},
}
PICTURE = torch.randint(256, (3, 16, 16), dtype=torch.uint8)


def made(*choices: str | dict[str, Any], size: int = 16, channels: int = 3) -> Augmentation:
    chosen = [Choice.model_validate(c if isinstance(c, dict) else {"name": c}) for c in choices]
    return augmentation_of(chosen=chosen, image_size=size, channels=channels)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_gives_an_image_that_numbers_alone_decide(name: str) -> None:
    params = NEEDED.get(name, {}) | RESIZED.get(name, {})
    assert AUGMENTATIONS.problems(name, params) == []
    if name in RESIZED:
        with pytest.raises(DataError, match=f"after {name}; needed are .*RandomCrop or Resize"):
            made({"name": name, **params}).one(PICTURE, 3)
    after = ["Resize"] if name in RESIZED else []
    varied = made({"name": name, **params}, *after)
    before = (
        torch.get_rng_state(),
        random.getstate(),
        list(np.random.get_state(legacy=True))[1].tolist(),
    )
    images = [varied.one(PICTURE, 0, 1, place) for place in range(4)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert list(np.random.get_state(legacy=True))[1].tolist() == before[2]
    torch.manual_seed(5)
    batch = varied.batch(PICTURE.expand(2, -1, -1, -1), 0, 1, [3, 1])
    assert torch.equal(batch, torch.stack([images[3], images[1]]))
    assert batch.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", ["RandAugment", "RandomCrop"])
def test_a_transform_is_torchvision_s_own(name: str) -> None:
    params = {"padding": 4} if name == "RandomCrop" else {"num_ops": 3}
    found = made({"name": name, **params}).one(PICTURE, 7, 2, 9)
    wide = np.random.SeedSequence([7, 2, 9, 1]).generate_state(2, np.uint64)[0]
    own = {"size": (16, 16)} if name == "RandomCrop" else {}
    torch.manual_seed(int(wide))
    assert torch.equal(found, getattr(v2, name)(**own, **params)(PICTURE))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("yes", "augment: 'yes' is neither true nor false nor a list"),
        (["RandAugmnt"], "augment.0: unknown augmentation 'RandAugmnt'; did you mean RandAugment?"),
        (["MixUp"], "augment.0: unknown augmentation 'MixUp'; did you mean mixup?"),
        ([{"name": "RandAugment", "nmu_ops": 1}], "nmu_ops: RandAugment has no parameter nmu_ops"),
        (["Pad"], "augment.0.padding: missing; Pad needs it"),
        ([{"name": "RandomHorizontalFlip", "p": 2}], "`p` should be"),
        ([{"name": "default", "flip": 1}], "augment.0.flip: default has no parameter flip"),
        (["RandAugment", "default"], "augment.1: default comes first, and once"),
        ([{"name": "mixup", "alpha": 0}], "augment.0.alpha: 0 is not more than 0"),
        ([3], "augment.0: 3 is not a name or"),
    ],
)
def test_what_a_list_says_wrongly_is_named_before_any_data(given: object, why: str) -> None:
    recipe = {
        "model": {"name": "lenet5"},
        "data": {"name": "digits", "augment": given},
        "training": {"epochs": 1, "learning_rate": 0.1},
    }
    with pytest.raises(RecipeError) as caught:
        check(Recipe, recipe, "r.yaml")
    assert why in str(caught.value)


def test_a_loss_must_take_what_mixing_makes() -> None:
    recipe: dict[str, Any] = {
        "model": {"name": "lenet5"},
        "data": {"name": "digits", "augment": ["default", "cutmix"]},
        "training": {"epochs": 1, "learning_rate": 0.1, "loss": "multiclass_hinge"},
    }
    with pytest.raises(RecipeError, match="cutmix make shares of classes; choose cross_entropy or"):
        check(Recipe, recipe, "r.yaml")
    recipe["training"]["loss"] = "cross_entropy"
    resolved = check(Recipe, recipe, "r.yaml")
    kept = resolved.as_dict()["data"]
    assert isinstance(kept, dict)
    assert kept["augment"] == [{"name": "default"}, {"name": "cutmix"}]
    assert check(Recipe, resolved.as_dict(), "again") == resolved


def test_what_gives_no_image_is_named() -> None:
    with pytest.raises(DataError, match=r"RandomPosterize: .*bits"):
        made({"name": "RandomPosterize", "bits": "x"})
    with pytest.raises(
        DataError, match=r"images are \[1, 16, 16\] after Grayscale; needed are \[3"
    ):
        made("Grayscale")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    split = FileSplit(paths, [0, 1, 2, 3])
    return DataSource("noise", split, split, 4, (0.0,) * 3, (1 / 255,) * 3, 24, 0, flip=True)


def load(source: DataSource, *choices: str | dict[str, Any], **more: Any) -> Loaders:
    chosen = [Choice.model_validate(c if isinstance(c, dict) else {"name": c}) for c in choices]
    given = {"image_size": 24, "train_samples": None, "seed": 2, "workers": 0, "batch_size": 2}
    return make_loaders(source, device=torch.device("cpu"), augment=chosen, **given | more)


def by_label(loaders: Loaders, epoch: int = 1) -> dict[int, torch.Tensor]:
    """Return each training image of an epoch, uint8 [3, H, W], by its label."""
    return {
        int(label): image.round().to(torch.uint8)
        for images, labels in loaders.train.batches(epoch)
        for image, label in zip(images, labels, strict=True)
    }


def test_default_alone_is_what_true_is(photographs: DataSource) -> None:
    given: dict[str, Any] = {"batch_size": 2, "image_size": 24, "train_samples": None, "seed": 2}
    usual = by_label(make_loaders(photographs, device=torch.device("cpu"), workers=0, **given))
    listed = by_label(load(photographs, "default"))
    assert all(torch.equal(usual[label], listed[label]) for label in range(4))


def test_a_photograph_is_cut_as_the_list_says(photographs: DataSource) -> None:
    """By validation's rule; by what cuts in the list; by the data set's own crops and flips."""
    assert isinstance(photographs.train, FileSplit)
    mirror = {"name": "RandomHorizontalFlip", "p": 1.0}
    plain, cut, own, nothing = (
        by_label(load(photographs, *choices))
        for choices in ([mirror], [mirror, "CenterCrop"], ["default", mirror], [])
    )
    usual = by_label(load(photographs, "default"))
    for label, path in enumerate(photographs.train.paths):
        centre = torch.from_numpy(centre_pixels(path, 24).copy()).permute(2, 0, 1)
        assert torch.equal(nothing[label], centre)
        assert torch.equal(plain[label], centre.flip(2))
        whole = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert torch.equal(cut[label], whole[:, 8:32, 12:36].flip(2))
        assert torch.equal(own[label], usual[label].flip(2))
        crop = np.asarray(random_crop(path, 24, seeded_generator(2, 1, label)))
        as_cut = torch.from_numpy(crop.copy()).permute(2, 0, 1)
        assert any(torch.equal(usual[label], each) for each in (as_cut, as_cut.flip(2)))


USERS = """
import torch

class Darker:
    def __init__(self, share=0.5):
        self.share = share
    def __call__(self, image):
        return (image * self.share).to(torch.uint8)

def noisy(image, *, levels: int = 3):
    return (image + torch.randint(levels, image.shape)).clamp(0, 255).to(torch.uint8)

def wrong(image):
    return image.no_such_thing
"""


@pytest.fixture
def code(tmp_path: Path) -> UserCode:
    (tmp_path / "mine.py").write_text(USERS)
    return UserCode((tmp_path,))


def test_transforms_of_the_user_s_own_vary_files_and_images_in_memory(
    code: UserCode, photographs: DataSource
) -> None:
    darker = {"name": "mine.py:Darker", "share": 0.25}
    for choice in (darker, {"name": "mine.py:noisy"}):
        load_transform(choice["name"], code, {k: v for k, v in choice.items() if k != "name"})
    images = torch.randint(256, (4, 3, 24, 24), dtype=torch.uint8)
    half = Split(images, torch.arange(4))
    memory = DataSource("noise", half, half, 4, (0.0,) * 3, (1 / 255,) * 3, 24, 0, flip=False)
    dark = by_label(load(memory, darker))
    assert all(torch.equal(dark[k], (images[k] * 0.25).to(torch.uint8)) for k in range(4))
    here, there = (
        by_label(load(photographs, darker, "mine.py:noisy", workers=workers)) for workers in (0, 1)
    )
    assert all(torch.equal(here[k], there[k]) for k in range(4))
    again = load(photographs, darker, "mine.py:noisy")
    late = [images for images, _ in again.train.batches(1, 1)]
    whole = [images for images, _ in again.train.batches(1)]
    assert torch.equal(late[0], whole[1])


@pytest.mark.parametrize(
    ("name", "params", "why"),
    [
        ("mine.py:gone", {}, "gone"),
        ("mine.py:Darker", {"shre": 1}, "has no parameter shre; did you mean share"),
        ("mine.py:noisy", {"levels": "x"}, "levels"),
    ],
)
def test_wrong_transforms_of_the_user_s_are_refused(
    name: str, params: dict[str, Any], why: str, code: UserCode
) -> None:
    with pytest.raises(RecipeError, match=why):
        load_transform(name, code, params)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_fails_in_a_user_s_transform_is_shown_with_its_line(
    workers: int, code: UserCode, photographs: DataSource
) -> None:
    load_transform("mine.py:wrong", code, {})
    with pytest.raises((DataError, RecipeError), match=r"mine\.py.*no_such_thing"):
        by_label(load(photographs, "mine.py:wrong", workers=workers))


def test_a_transform_whose_file_may_not_run_varies_nothing(photographs: DataSource) -> None:
    loaders = load(photographs, "other.py:never_run")
    assert len(list(loaders.validation.batches(0))) == 2
    assert len(list(loaders.training_images(0))) == 2
    with pytest.raises(DataError, match="file of a transform was not run"):
        next(loaders.train.batches(0))

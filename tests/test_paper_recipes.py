"""Every recipe that is shipped: loads, plans, takes a step, converts and exports, on tiny data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtool import pipeline, uses
from qtool.models.papers import MODELS
from qtool.models.vision import build_model
from qtool.recipe import Recipe
from qtool.recipe.file import load_recipe, write_recipe
from qtool.recipe.plain import override
from qtool.runs.built import build
from qtool.settings.section import check

ROOT = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))
SMALLEST = {"lenet5": 12, "resnet20": 8, "two_linear_layers": 28}  # pixels
SMALLEST_ELSE = 32
COUNTS = {"gaussian_teacher": "samples", "linear_subspaces": "samples_per_class"}
CLASSES = 10
# Large ones: ResNets, VGGs and MobileNets take steps elsewhere, and .ci/run trains digits.
SLOW = (
    "methods_digits",
    "liu2019_resnet50_imagenet",
    "schoenbauer2024_resnet50_imagenet",
    "yin2019_resnet20_cifar10",
    "hinton2015_resnet20_cifar10",
    "estimators_mnist",
    "liu2019_mobilenet_v1_imagenet",
    "liu2019_resnet20_cifar10",
    "yin2019_vgg11_cifar10",
    "digits",
    "digits_blend",
    "digits_distilled",
    "liu2019_binarynet_cifar10",
)
SLOW_TO_PLAN = ("liu2019_resnet50_imagenet", "schoenbauer2024_resnet50_imagenet")


def name_of(path: Path) -> str:
    """Return a recipe's name among those that are shipped."""
    return str(path.relative_to(ROOT).with_suffix(""))


def each_recipe(slow: tuple[str, ...]) -> pytest.MarkDecorator:
    """Return what gives a test every recipe; those that take long are marked slow."""
    cases = [
        pytest.param(p, marks=[pytest.mark.slow] if p.stem in slow else [], id=name_of(p))
        for p in RECIPES
    ]
    return pytest.mark.parametrize("path", cases)


def write_images(path: Path, size: int, channels: int) -> None:
    """Write an image of each class to train on and one to judge by."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (CLASSES, size, size, channels), np.uint8), np.arange(CLASSES)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def weights_of(data: dict[str, Any], folder: Path, channels: int) -> str:
    """Return weights to begin with: none, but random ones of a file where they teach."""
    if "distillation" not in data["training"]:
        return "none"
    built = build_model(data["model"]["name"], CLASSES, channels, data["data"]["image_size"])
    torch.save(built.model.state_dict(), folder / "weights.pt")
    return str(folder / "weights.pt")


def tiny(path: Path, folder: Path) -> Path:
    """Write the recipe again, for one step on a few small images, from fresh weights."""
    recipe = load_recipe(path)
    data: dict[str, Any] = recipe.as_dict()
    grey = recipe.data.name in ("mnist", "digits") and recipe.model.name in MODELS
    if recipe.data.name in COUNTS:
        changes = [f"data.{COUNTS[recipe.data.name]}=8", "data.repeats=1"]
    else:
        size = SMALLEST.get(recipe.model.name, SMALLEST_ELSE)
        write_images(folder / "tiny.npz", size, 1 if grey else 3)
        data["data"] = {"name": "arrays", "file": "tiny.npz", "root": str(folder)}
        data["data"]["image_size"] = size
        changes = ["data.augment=false"]
    if "width" in recipe.model.params:
        changes.append("model.width=0.125")
    changes += ["data.batch_size=32", f"model.weights={weights_of(data, folder, 1 if grey else 3)}"]
    changes += ["training.epochs=1", "training.calibration_batches=1"]
    data["quantization"] = simpler(data["quantization"])
    written = folder / "tiny.yaml"
    write_recipe(check(Recipe, override(data, changes), "tiny"), written, "a tiny form")
    return written


def simpler(quantization: Any) -> Any:
    """Search scales less, and narrow weights of 8 bits by one.

    Random ones of 8 bits saturate in the int8 kernels of some processors.
    """
    sections = [quantization, *quantization.get("overrides", [])]
    for weights in filter(None, (section.get("weights") for section in sections)):
        if weights.get("bits") == 8:
            weights["bits"] = 7
        if weights.get("range", {}).get("name") == "ppq":
            weights["range"] = {"name": "ppq", "starts": 1, "iterations": 2}
    return quantization


@each_recipe(SLOW_TO_PLAN)
def test_a_recipe_plans_what_it_quantizes_before_there_are_data(path: Path) -> None:
    recipe = load_recipe(path)
    build.check_against_network(recipe, str(path))
    found = uses.inspect(path)

    assert found.layers
    for side in ("weights", "input"):
        wanted = getattr(recipe.quantization, {"input": "activations"}.get(side, side))
        assert any(getattr(row, side) != "float" for row in found.layers) == (wanted is not None)


@pytest.mark.usefixtures("untimed")
@each_recipe(SLOW)
def test_a_recipe_takes_a_step_and_goes_all_the_way_to_a_file(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = pipeline.train(tiny(path, tmp_path), run_dir=run, device="cpu")
    converted = pipeline.convert(run, device="cpu")

    assert trained.status == "finished"
    assert trained.epochs == 1
    assert converted.layers
    if load_recipe(path).model.name in MODELS:  # torchvision's take long, and have tests elsewhere
        assert pipeline.export(run).disagreement == ""

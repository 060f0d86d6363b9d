"""A range that is not said: learned in training, calibrated where nothing is trained."""

from pathlib import Path

import pytest
import torch

from qtool import pipeline
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.prepare import prepare
from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe
from qtool.settings.section import check
from tests.kit import float_net, metrics, recipe, write_recipe

SECTION = {
    "weights": {"bits": 4},
    "activations": {"bits": 4, "range": "auto"},
    "overrides": [
        {"match": "conv1", "weights": {"bits": 8}},
        {"match": "conv2", "weights": {"range": "auto"}, "activations": {"range": "min_max"}},
        {"match": "fc", "weights": {"range": {"name": "absmax"}}},
    ],
}


@pytest.mark.parametrize(("trains", "name"), [(True, "learned"), (False, "calibrated")])
def test_what_is_not_said_is_decided_by_whether_anything_trains(trains: bool, name: str) -> None:
    model = prepare(float_net(), SECTION, torch.ones(2, 3, 8, 8), trains=trains)
    found = {
        module.place: module.settings.range.name
        for module in model.modules()
        if isinstance(module, FakeQuantize)
    }
    assert found["conv1.weight_quantizer"] == name
    assert found["conv2.weight_quantizer"] == name
    assert found["fc.weight_quantizer"] == "absmax"  # it is said
    others = {n: r for n, r in found.items() if "weight" not in n}
    assert others.pop("sites.input0") == ("mse" if trains else name)
    assert set(others.values()) == {name, "min_max"}


def test_training_by_default_gives_the_bits_that_learned_gives(tmp_path: Path) -> None:
    said = {"quantization.weights.range": "learned", "quantization.activations.range": "learned"}
    lines = []
    for name, changes in (("default", {}), ("said", said)):
        folder = tmp_path / name
        folder.mkdir()
        pipeline.train(write_recipe(folder, changes), run_dir=folder / "run", device="cpu")
        lines.append([{**line, "seconds": 0} for line in metrics(folder / "run")])
    assert lines[0] == lines[1]


def test_a_run_of_before_is_the_same_run() -> None:
    said = {"quantization.weights.range": "learned", "quantization.activations.range": "learned"}
    default, before = (check(Recipe, recipe(changes), "r") for changes in ({}, said))
    assert default.identity() == before.identity()
    assert default.identity(trains=False) != before.identity(trains=False)


def test_a_run_of_before_goes_on_with_the_ranges_that_it_wrote_out(tmp_path: Path) -> None:
    said = {"quantization.weights.range": "learned", "quantization.activations.range": "learned"}
    place = {"quantization.activations.place": "every_value", "training.epochs": 1}
    path = write_recipe(tmp_path, said | place)
    longer = tmp_path / "longer"
    longer.mkdir()
    more = write_recipe(longer, {**place, "training.epochs": 2})
    for folder, recipes in (("begun", (path, more)), ("other", (more,))):
        for each in recipes:
            run_dir = tmp_path / folder
            pipeline.train(each, run_dir=run_dir, device="cpu", resume=run_dir.exists())
    kept = load_recipe(tmp_path / "begun" / "recipe.yaml").quantization.activations
    assert kept is not None
    assert kept.range.name == "learned"
    states = (
        torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)["optimizer"]["state"]
        for folder in ("begun", "other")
    )
    # weight, bias and scale of five layers, and of what each of them reads but for the image
    assert [len(state) for state in states] == [20, 19]


def test_a_blend_asks_for_a_range_by_default_too() -> None:
    changes = {"quantization.weights.blend": {"name": "cubic"}}
    with pytest.raises(Exception, match="excludes range: learned"):
        check(Recipe, recipe(changes), "r")

"""What is wrong with a recipe by its words alone: found without torch, in the same words."""

from pathlib import Path

import pytest

from qtool.errors import RecipeError
from qtool.known import FAMILIES, known
from qtool.problems import report
from qtool.recipe import early
from qtool.recipe.early import early_problems, refuse_wrong_words
from qtool.recipe.file import check_recipe, read_extended
from tests.kit import recipe
from tests.self_description import ROOT

PLACES = {  # of each family, a place of a recipe
    "models": "model",
    "data": "data",
    "estimators": "quantization.weights.estimator",
    "ranges": "quantization.activations.range",
    "schedules": "training.learning_rate",
    "losses": "training.loss",
    "optimizers": "training.optimizer",
}
WRONG = recipe(
    {
        "sed": 1,
        "model.weights": 3,
        "data.batch_size": "64",
        "data.augmnt": True,
        "quantization.weights.bits": 9,
        "quantization.weights.grid": "narow",
        "quantization.activations.range": {"name": "percentile", "percentile": 10},
        "quantization.overrides": [
            {"match": "conv1", "weights": {"bits": 0, "estimator": "identify"}}
        ],
        "training.epochs": 2.5,
        "training.learning_rate": {"name": "linear", "start": "high", "stop": 0.0, "warmup": 0.1},
        "training.loss": {"name": "cross_entropy", "smoothing": 0.1},
        "training.optimizer": "sdg",
    }
)


def test_all_problems_are_told_at_once_in_the_words_of_the_full_check() -> None:
    found = early_problems(WRONG)

    with pytest.raises(RecipeError) as caught:
        check_recipe(WRONG, Path("r.yaml"))
    assert len(found) == 13
    assert sorted(str(report("r.yaml", found)).splitlines()) == sorted(
        str(caught.value).splitlines()
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_that_ships_passes(path: Path) -> None:
    assert early_problems(read_extended(path)) == []


def test_every_choice_passes_with_its_defaults() -> None:
    usual = {"number": 0.5, "integer": 2, "array": [0.5], "string": "x"}
    assert set(PLACES) < set(FAMILIES)
    for family, place in PLACES.items():
        for one in known(family):
            params = {
                each["name"]: each.get("default", usual.get(str(each["schema"].get("type"))))
                for each in one["parameters"]
            }
            if family in ("models", "data"):
                changes = {f"{place}.name": one["name"]}
                changes |= {f"{place}.{key}": value for key, value in params.items()}
            else:
                changes = {place: {"name": one["name"]} | params}
            assert early_problems(recipe(changes)) == [], one["name"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "own.py:Net", "depth": 3}},
        {"model": {"name": "timm:vit_tiny_patch16_224"}},
        {"training.optimizer": {"name": "NAdam", "momentum_decay": 0.1}},
        {"training.loss": "package.losses:focal"},
        {"quantization.weights.estimator": {"name": "own.py:soft", "slope": 2.0}},
        {"training.learning_rate": 1},
        {"quantization": None},
        {"quantization.weights.estimator": {"name": "sinusoidal", "amplitude": {"name": "linear"}}},
    ],
    ids=str,
)
def test_what_only_the_full_check_can_judge_passes(changes: dict[str, object]) -> None:
    assert early_problems(recipe(changes)) == []


def test_models_of_another_torchvision_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    new = recipe({"model": {"name": "resnet_of_next_year"}})
    assert [place for place, _ in early_problems(new)] == ["model.name"]
    monkeypatch.setattr(early, "version", lambda _: "99.1.0")
    assert early_problems(new) == []


def test_a_base_and_what_set_says_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("training: {epochs: 1, learning_rte: 0.1}\n")
    path = tmp_path / "r.yaml"
    path.write_text("extends: base.yaml\nmodel: {name: lenet5}\ndata: {name: digits}\n")
    with pytest.raises(RecipeError) as caught:
        refuse_wrong_words(path, ["data.nam=digits"])

    assert str(caught.value).splitlines()[1:] == [
        "  data.nam: unknown key; did you mean name?",
        "  training.learning_rte: unknown key; did you mean learning_rate?",
    ]

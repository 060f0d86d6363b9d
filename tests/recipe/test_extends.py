"""`extends: other.yaml`: what of another recipe is different, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qtool.errors import RecipeError
from qtool.recipe.extends import MOST, joined
from qtool.recipe.file import load_recipe
from tests import kit
from tests.kit import shell

ESTIMATOR = "def mine(grad, u, low, high):\n    return grad\n"
CHOICE = {"name": "hyperbolic_tangent", "sharpness": 2.0}


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("base", "own", "made"),
    [
        ({"seed": 1, "training": {"epochs": 1}}, {"seed": 2}, {"seed": 2}),
        (
            {"training": {"epochs": 1, "loss": "cross_entropy"}},
            {"training": {"epochs": 5}},
            {"training": {"epochs": 5, "loss": "cross_entropy"}},
        ),
        (
            {"quantization": {"weights": {"bits": 4, "estimator": CHOICE}}},
            {"quantization": {"weights": {"estimator": {"name": "relu"}}}},
            {"quantization": {"weights": {"bits": 4, "estimator": {"name": "relu"}}}},
        ),
        (
            {"quantization": {"weights": {"bits": 4, "estimator": CHOICE}}},
            {"quantization": {"weights": {"estimator": {"name": CHOICE["name"]}}}},
            {"quantization": {"weights": {"bits": 4, "estimator": CHOICE}}},
        ),
        (
            {"quantization": {"weights": {"bits": 4, "estimator": CHOICE}}},
            {"quantization": {"weights": {"blend": "linear"}}},
            {"quantization": {"weights": {"bits": 4, "blend": "linear"}}},
        ),
        (
            {"quantization": {"weights": {"estimator": CHOICE, "blend": {"name": "linear"}}}},
            {"quantization": {"weights": {"blend": {"name": "cubic"}}}},
            {"quantization": {"weights": {"estimator": CHOICE, "blend": {"name": "cubic"}}}},
        ),
        (
            {"quantization": {"weights": {"bits": 4}, "overrides": [{"match": "a"}]}},
            {"quantization": {"weights": None, "overrides": []}},
            {"quantization": {"weights": None, "overrides": []}},
        ),
        (
            {"data": {"name": "image_folder", "labels": "imagenet", "batch_size": 8}},
            {"data": {"name": "cifar10"}},
            {"data": {"name": "cifar10", "batch_size": 8}},
        ),
        (
            {"model": {"name": "resnet18", "stem": "small", "weights": "none"}},
            {"model": {"weights": "DEFAULT"}},
            {"model": {"name": "resnet18", "stem": "small", "weights": "DEFAULT"}},
        ),
        ({"training": {"learning_rate": 0.1}}, {"training": None}, {"training": None}),
    ],
    ids=[
        *["number", "section", "other", "same", "blend", "both", "null", "data", "model"],
        "no section",
    ],
)
def test_sections_are_joined_and_choices_take_each_other_s_place(
    base: dict[str, object], own: dict[str, object], made: dict[str, object]
) -> None:
    before = yaml.safe_dump([base, own])
    assert joined(base, own) == base | made
    assert yaml.safe_dump([base, own]) == before


def test_a_recipe_and_all_that_it_extends_are_one_recipe_and_set_comes_last(tmp_path: Path) -> None:
    data = kit.recipe({"training.epochs": 1, "model.weights": "w.pt", "seed": 3})
    write(tmp_path / "base" / "r.yaml", data)
    (tmp_path / "base" / "w.pt").touch()
    (tmp_path / "base" / "mine.py").write_text(ESTIMATOR)
    middle = {
        "extends": "base/r.yaml",
        "quantization": {"weights": {"estimator": "mine.py:mine"}},
        "training": {"epochs": 2},
    }
    write(tmp_path / "middle.yaml", middle)
    own = write(tmp_path / "own" / "r.yaml", {"extends": "../middle.yaml", "seed": 4})

    recipe = load_recipe(own, ["training.epochs=7"])

    side = recipe.quantization.weights
    assert side is not None
    assert side.estimator is not None
    assert (recipe.seed, recipe.training.epochs, side.bits) == (4, 7, 4)
    assert side.estimator.name == "mine.py:mine"  # in the folder of one that is extended
    weights = Path(recipe.model.weights)
    assert weights.is_absolute()  # a path is that of the file that says it
    assert weights.samefile(tmp_path / "base" / "w.pt")
    assert "extends" not in recipe.as_dict()


def test_a_run_keeps_the_whole_recipe_and_needs_the_others_no_more(tmp_path: Path) -> None:
    kit.write_recipe(tmp_path)
    own = write(tmp_path / "own.yaml", {"extends": "r.yaml", "seed": 5})
    run = tmp_path / "run"
    code, _, err = shell("train", str(own), "--run-dir", str(run), "--no-report")
    assert code == 0, err
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (kept["seed"], kept["model"]["name"]) == (5, "lenet5")
    (tmp_path / "r.yaml").unlink()
    assert load_recipe(run / "recipe.yaml", extends=False).seed == 5


def test_the_recipe_of_a_run_extends_nothing(tmp_path: Path) -> None:
    write(tmp_path / "r.yaml", kit.recipe())
    write(tmp_path / "run" / "recipe.yaml", {"extends": "../r.yaml"})
    (tmp_path / "run" / "summary.json").write_text("{}")
    for command in (["train"], ["inspect"], ["convert"]):
        path = tmp_path / "run" / ("" if command != ["train"] else "recipe.yaml")
        code, _, err = shell(*command, str(path))
        assert code == 2
        assert "extends: unknown key" in err


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"r.yaml": "r.yaml"}, r"r\.yaml: extends: goes in a circle: .*r\.yaml extends .*r\.yaml"),
        ({"r.yaml": "b.yaml", "b.yaml": "./b.yaml"}, r"r\.yaml: extends: goes in a circle: "),
        ({"r.yaml": "no.yaml"}, r"no\.yaml: no such file.*\n.*r\.yaml extends it"),
        ({"r.yaml": 3}, r"r\.yaml: extends: 3 is no path; give that of a recipe"),
        ({"r.yaml": ["b.yaml"]}, r"r\.yaml: extends: \['b\.yaml'\] is no path"),
        ({"r.yaml": ""}, r"r\.yaml: extends: '' is no path"),
        (
            {"r.yaml": "0.yaml"} | {f"{k}.yaml": f"{k + 1}.yaml" for k in range(MOST)},
            rf"r\.yaml: extends: more than {MOST} recipes in a row",
        ),
    ],
    ids=["itself", "another", "missing", "number", "list", "empty", "too many"],
)
def test_what_cannot_be_extended_is_told_with_its_file(
    said: dict[str, object], why: str, tmp_path: Path
) -> None:
    for name, value in said.items():
        write(tmp_path / name, {"extends": value})
    with pytest.raises(RecipeError, match=why):
        load_recipe(tmp_path / "r.yaml")


def test_problems_are_those_of_the_whole(tmp_path: Path) -> None:
    kit.write_recipe(tmp_path)
    own = write(tmp_path / "own.yaml", {"extends": "r.yaml", "data": {"batchsize": 3}})
    with pytest.raises(RecipeError, match=r"own\.yaml: 1 problem\n  data\.batchsize: .*batch_size"):
        load_recipe(own)


def test_recipes_are_joined_without_torch() -> None:
    program = "import sys, qtool.recipe.extends; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

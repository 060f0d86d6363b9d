"""Recipes: what loads, what `--set` changes, and what is kept."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from qtool.errors import RecipeError
from qtool.files.yaml_data import parse_yaml
from qtool.problems import did_you_mean
from qtool.recipe import Recipe
from qtool.recipe.file import load_recipe, write_recipe
from qtool.recipe.plain import SECTIONS, override
from qtool.settings.section import check
from tests import kit

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
SMALLEST: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits"},
    "training": {"epochs": 1, "learning_rate": 0.1},
}
SCHEDULE = {"name": "cosine", "start": 0.1, "stop": 0.0, "window": [0.25, 1.0], "warmup": 0.05}
BLEND = {"name": "cubic", "start": 0.0, "stop": 1.0, "window": [0.0, 0.8]}
FULL = {
    **SMALLEST,
    "seed": 7,
    "data": {"name": "arrays", "file": "a.npz", "mean": [0.5], "std": [0.25], "workers": 0},
    "quantization": {
        "weights": {"bits": 3, "range": {"name": "mse", "candidates": 40}, "blend": BLEND},
        "activations": {"bits": 4, "grid": "asymmetric", "range": "ema_min_max"},
        "overrides": [
            {"match": "conv1", "weights": None, "activations": None},
            {"match": ["fc1", "fc?"], "weights": {"blend": None, "estimator": "identity"}},
            {"match": "conv2", "activations": None},
            {"match": "*"},
        ],
    },
    "training": {
        "epochs": 3,
        "learning_rate": SCHEDULE,
        "optimizer": {"name": "adamw", "betas": [0.8, 0.9]},
    },
}


def test_there_are_recipes() -> None:
    assert "digits.yaml" in [path.name for path in RECIPES]


def test_what_opens_without_torch_knows_the_keys_of_a_recipe() -> None:
    assert list(Recipe.model_fields) == list(SECTIONS)


def test_the_digits_do_not_saturate() -> None:
    (digits,) = (path for path in RECIPES if path.name == "digits.yaml")
    quantization = load_recipe(digits).quantization
    weights = [quantization.for_layer(name)[0] for name in ("conv1", "layer1.0.conv1", "fc")]
    assert [side and side.saturation for side in weights] == ["avoid"] * 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_is_the_same_when_written_and_loaded_again(
    path: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(path)
    write_recipe(recipe, tmp_path / "again.yaml", "a copy")
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("data", [SMALLEST, FULL], ids=["smallest", "full"])
def test_a_written_recipe_loads_as_an_equal_one(data: dict[str, Any], tmp_path: Path) -> None:
    recipe = check(Recipe, data, "here")
    write_recipe(recipe, tmp_path / "r.yaml", "one line")
    again = load_recipe(tmp_path / "r.yaml")
    assert again == recipe
    assert again.as_dict() == recipe.as_dict()
    assert again.identity() == recipe.identity()
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
    assert (tmp_path / "r.yaml").read_text().startswith("# one line\n")


def test_a_null_in_an_override_stays_a_null_and_an_absent_key_stays_absent(tmp_path: Path) -> None:
    write_recipe(check(Recipe, FULL, "here"), tmp_path / "r.yaml", "one line")
    kept = yaml.safe_load((tmp_path / "r.yaml").read_text())["quantization"]["overrides"]
    assert kept == FULL["quantization"]["overrides"]
    quantization = load_recipe(tmp_path / "r.yaml").quantization
    for name, bits, blended in [("conv1", None, False), ("fc2", 3, False), ("conv2", 3, True)]:
        weights, _, _ = quantization.for_layer(name)
        assert (weights and weights.bits) == bits
        assert bool(weights and weights.blend) == blended
    assert quantization.for_layer("conv2")[1] is None
    assert quantization.for_layer("head")[1] == quantization.activations


def test_where_the_data_lies_is_not_what_makes_a_run() -> None:
    here = check(Recipe, SMALLEST, "here")
    changes = ["data.root=/elsewhere", "data.workers=0"]
    there = check(Recipe, override(SMALLEST, changes), "there")
    other = check(Recipe, override(SMALLEST, ["data.batch_size=32"]), "other")
    assert here != there
    assert here.identity() == there.identity()
    assert here.identity() != other.identity()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2e+1", -20.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
        ("'1e-3'", "1e-3"),
        ("0x10", 16),
        ("null", None),
        ("[1e-3, a]", [0.001, "a"]),
    ],
)
def test_yaml_numbers_are_what_people_read(text: str, value: object) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key a is written twice"),
        ("a:\n  b: 1\n  'b': 1", "line 3: the key b is written twice"),
        ("[{a: 1, a: 2}]", "line 1: the key a is written twice"),
        ("a: [", "line 1, column 5: expected the node content"),
    ],
)
def test_yaml_errors_say_the_line(text: str, where: str) -> None:
    with pytest.raises(yaml.YAMLError, match=where) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_keys_may_be_shared_by_aliases() -> None:
    shared = parse_yaml("a: &x {k: 1}\nb: *x\nc: {<<: *x, k: 2}")
    assert shared == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 2}}


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("straight_trough", "; did you mean straight_through?"),
        ("cliped_relu", "; did you mean clipped_relu?"),
        ("xyz", "; choose one of: straight_through, clipped_relu"),
        ("", "; choose one of: straight_through, clipped_relu"),
    ],
)
def test_a_near_miss_is_answered_with_the_word_and_others_with_all_words(
    word: str, answer: str
) -> None:
    assert did_you_mean(word, ["straight_through", "clipped_relu"]) == answer


BASE: dict[str, Any] = {
    "seed": 0,
    "training": {"learning_rate": 0.1, "optimizer": "sgd"},
    "quantization": {
        "weights": {"estimator": "relu"},
        "overrides": [{"match": "a"}, {"match": "b"}],
    },
}
OVERRIDES = ["quantization", "overrides"]


@pytest.mark.parametrize(
    ("assignment", "place", "value"),
    [
        ("seed=3", ["seed"], 3),
        (" seed = 3 ", ["seed"], 3),
        ("training.learning_rate=1e-3", ["training", "learning_rate"], 0.001),
        (
            "training.optimizer.momentum=0.5",
            ["training", "optimizer"],
            {"name": "sgd", "momentum": 0.5},
        ),
        (
            "quantization.weights.estimator.sharpness=2",
            ["quantization", "weights", "estimator"],
            {"name": "relu", "sharpness": 2},
        ),
        (
            "quantization.weights.blend={name: cubic, start: 0, stop: 1}",
            ["quantization", "weights", "blend"],
            {"name": "cubic", "start": 0, "stop": 1},
        ),
        ("quantization.overrides.1.match=[c, d]", [*OVERRIDES, 1, "match"], ["c", "d"]),
        ("quantization.overrides.0.weights.bits=8", [*OVERRIDES, 0, "weights"], {"bits": 8}),
        ("quantization.activations.bits=4", ["quantization", "activations"], {"bits": 4}),
        ("quantization.weights=null", ["quantization", "weights"], None),
        ("data.root=a=b", ["data", "root"], "a=b"),
    ],
)
def test_set_puts_a_value_at_its_place_and_leaves_the_rest(
    assignment: str, place: list[Any], value: object
) -> None:
    before = yaml.safe_dump(BASE)
    changed: Any = override(BASE, [assignment])
    for key in place:
        changed = changed[key]
    assert changed == value
    assert yaml.safe_dump(BASE) == before


def test_set_takes_assignments_in_order() -> None:
    changed = override(BASE, ["seed=1", "training={}", "training.epochs=2", "seed=2"])
    assert changed == BASE | {"seed": 2, "training": {"epochs": 2}}


def test_set_changes_one_of_two_places_that_share_an_alias() -> None:
    data = parse_yaml("a: &x {k: {n: 1}}\nb: *x\nc: [*x, *x]")
    changed = override(data, ["b.k.n=2", "c.1.k.n=3"])
    one, two, three = ({"k": {"n": number}} for number in (1, 2, 3))
    assert changed == {"a": one, "b": two, "c": [one, three]}


def test_a_choice_written_as_a_name_takes_parameters_from_set(tmp_path: Path) -> None:
    changes = [
        "training.optimizer=sgd",
        "training.optimizer.momentum=0.25",
        "quantization.weights.range=mse",
        "quantization.weights.range.candidates=5",
    ]
    recipe = load_recipe(kit.write_recipe(tmp_path), changes)
    assert recipe.training.optimizer.params == {"momentum": 0.25}
    assert recipe.quantization.weights is not None
    assert recipe.quantization.weights.range.model_dump() == {"name": "mse", "candidates": 5}


def test_a_number_is_a_constant_learning_rate() -> None:
    for number in (1, 0.5, 0):
        data = override(SMALLEST, [f"training.learning_rate={number}"])
        rate = check(Recipe, data, "here").training.learning_rate
        assert rate.model_dump() == {"name": "constant", "value": float(number)}


def test_a_recipe_cannot_be_changed() -> None:
    recipe = check(Recipe, SMALLEST, "here")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_problems_of_override_and_base_have_their_own_places() -> None:
    data = override(
        {**SMALLEST, "quantization": {"weights": {"bits": 4}, "overrides": [{"match": "a"}] * 2}},
        ["quantization.overrides.1.weights={bits: 12, rage: mse}"],
    )
    with pytest.raises(RecipeError) as caught:
        check(Recipe, data, "here")
    assert str(caught.value).splitlines() == [
        "here: 2 problems",
        "  quantization.overrides.1.weights.bits: 12 is more than 8",
        "  quantization.overrides.1.weights.rage: unknown key; did you mean range?",
    ]


def test_relative_paths_are_those_beside_the_recipe_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
    for path in (beside / "both", here / "both", here / "data"):
        path.mkdir()
    (beside / "w.pt").touch()
    monkeypatch.chdir(here)
    roots = {"both": str(beside / "both"), "data": str(here / "data"), "no": "no", "~/x": "~/x"}
    for root, expected in roots.items():
        changes = {"data.root": root, "model.weights": "w.pt"}
        recipe = load_recipe(kit.write_recipe(beside, changes))
        assert recipe.data.root == expected
        assert recipe.model.weights == str(beside / "w.pt")
    (here / "none").mkdir()  # no file of weights is called so
    assert load_recipe(kit.write_recipe(beside)).model.weights == "none"
    said = load_recipe(kit.write_recipe(beside), ["data.root=both"])
    assert said.data.root == "both"  # of --set, whose paths are those of the shell

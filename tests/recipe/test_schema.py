"""The JSON Schema of recipes, by which editors complete and check them."""

import json
from typing import Any

import pytest
import yaml

from qtool.errors import RecipeError
from qtool.known import FILE
from qtool.recipe import Recipe
from qtool.recipe.plain import override, read_recipe_file
from qtool.settings.section import check
from tests import kit
from tests import self_description as said
from tests.recipe.test_recipe import FULL

RECIPES = sorted((said.ROOT / "recipes").rglob("*.yaml"))
SCHEMA = json.loads(FILE.with_name("recipe.schema.json").read_text())
WRONG = [
    "seed=-1",
    "sed=1",
    "model.name=resnet19",
    "model.name=vit_b_16",  # lenet5's batch_norm is none of its parameters
    "data.batchsize=3",
    "data.name=mnst",
    "data.workers=many",
    "quantization.weights.bits=9",
    "quantization.weights.estimator=straight_trough",
    "quantization.weights.estimator={name: hyperbolic_tangent, sharpnes: 2.0}",
    "quantization.weights.range={name: fixed}",
    "quantization.overrides=[{match: fc, weigths: null}]",
    "training.optimizer={name: sgd, momentum: 2.0}",
    "training.learning_rate={name: cosine, start: 0.1, stop: 0.0, warmup: 1.5}",
    "training.precision=float16",
    "training.epochs=null",
]
RIGHT = [
    "model={name: 'nets.py:Net', width: 2}",
    "model={name: resnet18, stem: small}",
    "data={name: image_folder, labels: imagenet, workers: 4}",
    "quantization=null",
    "quantization.weights.estimator=mine.py:gradient",
    "quantization.weights.estimator={name: hyperbolic_tangent, sharpness: {name: linear, start: 1.0"
    ", stop: 2.0}}",
    "quantization.weights.blend=cubic",
    "quantization.weights.blend={name: cubic, phases: 2}",
    "quantization.weights.dampening=0.1",
    "quantization.overrides=[{match: [conv1, fc], weights: null, activations: {bits: 8}}]",
    "training.optimizer={name: Adagrad, lr_decay: 0.1}",
    "training.learning_rate={name: cosine, start: 0.1, stop: 0.0, warmup: 0.5}",
]


def whole(*changes: str) -> dict[str, object]:
    base = kit.recipe({"model.batch_norm": "none"})
    if any("blend" in change for change in changes):
        base["quantization"]["weights"]["range"] = "absmax"
    return override(base, changes)


def keys(schema: Any, inside: str = "") -> set[str]:
    """Return the keys that a part of the schema knows, each by its whole name."""
    found: set[str] = set()
    for key, given in schema.get("properties", {}).items():
        found |= {f"{inside}{key}"} | keys_within(given, f"{inside}{key}.")
    return found.union(*(keys(way, inside) for way in schema.get("anyOf", [])))


def keys_within(given: Any, inside: str) -> set[str]:
    """Return the keys of the section, or the list of sections, that a key holds."""
    named = given.get("$ref", "").removeprefix("#/$defs/")
    found = keys(SCHEMA["$defs"][named], inside) if named[:1].isupper() else set()
    listed = [given["items"]] if "items" in given else []
    return found.union(*(keys_within(way, inside) for way in given.get("anyOf", []) + listed))


def test_every_key_of_a_recipe_is_in_the_schema() -> None:
    assert {key.replace("[]", "") for key, _ in said.recipe_keys()} <= keys(SCHEMA)


def test_a_schema_takes_what_qtool_takes_and_refuses_what_it_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft7Validator(SCHEMA)
    good = [read_recipe_file(path) for path in RECIPES] + [FULL, whole(), *map(whole, RIGHT)]
    good.append({"extends": "r.yaml", "quantization": {"weights": {"estimator": "relu"}}})
    for data in good:
        assert validator.is_valid(data), yaml.safe_dump(data)
    for change in WRONG:
        data = whole(change)
        with pytest.raises(RecipeError):
            check(Recipe, data, "here")
        assert not validator.is_valid(data), change
    assert not validator.is_valid({"seed": 1})


@pytest.mark.parametrize("change", [change for change in RIGHT if ".py:" not in change])
def test_what_the_schema_is_said_to_take_qtool_takes(change: str) -> None:
    check(Recipe, whole(change), "here")

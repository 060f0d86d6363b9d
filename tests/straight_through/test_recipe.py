"""What of training a straight-through form cannot have is named, each with what would be right."""

from typing import Any

import pytest

from qtool.errors import RecipeError
from qtool.recipe.recipe import Recipe
from qtool.settings.section import check
from qtool.straight_through.recipe import equivalent_of
from tests.kit import recipe

HAS_A_FORM: dict[str, Any] = {
    "quantization": {
        "weights": {"bits": 2, "range": "he_uniform", "estimator": "hyperbolic_tangent"}
    },
    "data.holdout": 0.1,
}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optimizer", "RAdam", "no straight-through form is known under RAdam; choose sgd, adamw"),
        ("optimizer", "rmsprop", "no straight-through form is known under rmsprop"),
        ("ema", 0.9, "the average of what M gives is not what M gives of the average"),
        ("early_stopping", {"patience": 1}, "runs that are the same would end after other epochs"),
        ("distillation", {}, "the network of model.weights teaches, and another start is another"),
    ],
)
def test_a_key_without_a_straight_through_form_is_refused(key: str, value: Any, told: str) -> None:
    changes = HAS_A_FORM | {"model.weights": "a.pt", f"training.{key}": value}
    given = check(Recipe, recipe(changes), "r.yaml")
    with pytest.raises(RecipeError, match=f"training.{key}: {told}"):
        equivalent_of(given, "r.yaml")


@pytest.mark.parametrize(
    ("changes", "noted"),
    [
        ({"training.clip_gradient": 1.0}, ["clip_gradient goes by the norm"]),
        ({"training.optimizer": {"name": "adam", "weight_decay": 0.1}}, ["weight_decay 0.1 pulls"]),
        ({"training.optimizer": {"name": "adamw", "weight_decay": 0.1}}, []),
        ({}, []),
    ],
    ids=str,
)
def test_what_keeps_the_form_from_being_exact_is_noted(
    changes: dict[str, Any], noted: list[str]
) -> None:
    found = equivalent_of(check(Recipe, recipe(HAS_A_FORM | changes), "r.yaml"), "r.yaml").notes
    assert len(found) == len(noted)
    assert all(map(str.startswith, found, noted))

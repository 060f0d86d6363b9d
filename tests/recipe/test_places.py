"""What stands at dotted places of a recipe's plain data, and what is put there."""

from copy import deepcopy

import pytest

from qtool.recipe.places import at, put, section_at

DATA = {
    "seed": 3,
    "quantization": {
        "weights": {"bits": 4},
        "overrides": [{"match": "conv1"}, {"match": "fc", "weights": None}],
    },
}


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("seed", 3),
        ("quantization.weights", {"bits": 4}),
        ("quantization.weights.bits", 4),
        ("quantization.overrides.1.match", "fc"),
        ("quantization.overrides.1.weights", None),
        ("quantization.overrides.2.match", None),
        ("quantization.activations.bits", None),
        ("seed.name", None),
    ],
)
def test_a_place_is_walked_to_by_keys_and_numbers(place, found):
    assert at(DATA, place) == found


def test_a_section_that_is_absent_or_null_is_empty():
    assert section_at(DATA, "quantization.weights") == {"bits": 4}
    assert section_at(DATA, "quantization.overrides.1.weights") == {}
    assert section_at(DATA, "training") == {}


def test_what_is_put_somewhere_changes_a_copy_only():
    before = deepcopy(DATA)
    made = put(
        DATA,
        {
            "seed": 4,
            "quantization.overrides.1.weights.bits": 8,
            "quantization.weights.estimator": None,
            "training.epochs": 2,
        },
    )

    assert made == {
        "seed": 4,
        "quantization": {
            "weights": {"bits": 4, "estimator": None},
            "overrides": [{"match": "conv1"}, {"match": "fc", "weights": {"bits": 8}}],
        },
        "training": {"epochs": 2},
    }
    assert list(made) == ["seed", "quantization", "training"]
    assert before == DATA

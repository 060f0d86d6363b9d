"""Which recipes a comparison of estimators trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qtool.comparison.arms.estimators import estimator_arms
from qtool.comparison.question import ComparisonRequest, Side
from qtool.errors import InputError
from tests.kit import write_recipe

SHARP = {"name": "hyperbolic_tangent", "sharpness": 1.2}


def arms(folder: Path, names: list[str], side: Side = "weights", **sides: Any) -> dict[str, Any]:
    path = write_recipe(folder, {"quantization": sides})
    request = ComparisonRequest(path, 1, folder, None, torch.device("cpu"))
    made, on = estimator_arms(request, names, side)
    assert on == side
    return {arm.name: arm.recipe(0).quantization for arm in made}


def test_the_recipe_s_own_estimator_keeps_its_parameters(tmp_path: Path) -> None:
    made = arms(
        tmp_path,
        ["straight_through", "hyperbolic_tangent"],
        weights={"bits": 4, "range": "absmax", "estimator": SHARP},
    )
    found = {name: section.weights.estimator for name, section in made.items()}
    assert found["hyperbolic_tangent"].params == {"sharpness": 1.2}
    assert (found["straight_through"].name, found["straight_through"].params) == (
        "straight_through",
        {},
    )


def test_layers_with_an_estimator_or_a_blend_of_their_own_take_part(tmp_path: Path) -> None:
    made = arms(
        tmp_path,
        ["identity", "hyperbolic_tangent"],
        weights={"bits": 4, "range": "absmax", "estimator": SHARP},
        overrides=[
            {"match": "conv2", "weights": {"estimator": "sinusoidal"}},
            {"match": "fc1", "weights": {"blend": "cubic"}},
            {"match": "fc2", "weights": {"estimator": SHARP | {"sharpness": 2.0}}},
            {"match": "fc3", "weights": None},
        ],
    )
    for name, section in made.items():
        for layer in ("conv1", "conv2", "fc1", "fc2"):
            settings = section.for_layer(layer)[0]
            assert (settings.estimator.name, settings.blend) == (name, None)
        assert section.for_layer("fc3")[0] is None
    tangent = made["hyperbolic_tangent"]
    sharpness = [tangent.for_layer(n)[0].estimator.params["sharpness"] for n in ("conv2", "fc2")]
    assert sharpness == [1.2, 2.0]


def test_weights_that_are_quantized_in_overrides_only_have_estimators(tmp_path: Path) -> None:
    overrides = [{"match": "conv2", "weights": {"bits": 4, "range": "absmax"}}]
    made = arms(tmp_path, ["identity"], weights=None, overrides=overrides)
    assert made["identity"].for_layer("conv2")[0].estimator.name == "identity"


def test_a_side_that_is_float_everywhere_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quantization\.activations is float, so it has no estim"):
        arms(tmp_path, ["identity"], "activations", weights={"bits": 4})

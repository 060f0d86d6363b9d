"""Every newer method of training, from a recipe to a file that the runtime agrees with."""

from pathlib import Path
from typing import Any

import pytest

from qtool import pipeline
from qtool.reports.results import UnprovenExport
from tests.kit import write_recipe

TWO_BITS = {"name": "fixed", "scale": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "trust": {"quantization.weights.estimator": "trust"},
    "dsq": {
        "quantization.weights.estimator": "soft_quantization",
        "quantization.activations.estimator": "soft_quantization",
    },
    "qil": {"quantization.weights.range": "qil"},
    "n2uq": {"model.activation": "piecewise_linear", "quantization.activations.range": TWO_BITS},
    "rprelu": {
        "model.activation": "rprelu",
        "quantization.activations.bits": 1,
        "quantization.activations.grid": "mid_rise",
        "quantization.activations.estimator": "approx_sign",
    },
    "cage": {"training.cage": 5.0},
    "transition rate": {"training.transition_rate": {"target": 0.02}},
    "saq": {"training.sharpness_aware": 0.05},
}
ENDS = {"bits": 8, "range": "learned", "estimator": "straight_through"}
SHARED = {
    "model": {"name": "lenet5", "batch_norm": "fixed"},
    "data": {"name": "digits", "batch_size": 32, "image_size": 12, "train_samples": 640},
    "quantization.weights": {"bits": 2},
    "quantization.activations": {"bits": 2, "place": "layer_inputs"},
    "quantization.overrides": [
        {"match": ["conv1", "fc3"], "weights": ENDS, "activations": ENDS | {"grid": "auto"}}
    ],
    "training.epochs": 1,
    "training.learning_rate": 0.02,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_ends_in_a_file_that_the_runtime_computes_as_qtool_does(
    name: str, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, SHARED | METHODS[name])
    done = pipeline.run(path, run_dir=tmp_path / "run", device="cpu")
    assert not isinstance(done.export, UnprovenExport)
    assert done.export.top1_agreement == 1.0
    assert done.convert.validation_accuracy_after == done.convert.validation_accuracy_before

"""Mutated recipes, and the commands that read them."""

from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.hostile.mutations import changed_bytes, changed_data, changed_lines
from tests.kit import recipe

_LEARNED = {
    "quantization.weights": {
        "bits": 4,
        "granularity": "per_channel",
        "grid": "narrow",
        "range": {"name": "learned"},
        "estimator": {
            "name": "hyperbolic_tangent",
            "sharpness": {"name": "linear", "start": 1.0, "stop": 2.0, "window": [0.0, 0.5]},
        },
    },
    "quantization.activations": {"bits": 4, "range": "learned", "estimator": "clipped_relu"},
    "quantization.overrides": [
        {"match": ["conv1", "fc3"], "weights": {"bits": 8}, "activations": None},
        {"match": ":conv2d1", "activations": {"bits": 8}},
    ],
    "training.optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    "training.learning_rate": {"name": "cosine", "start": 0.05, "stop": 0.0, "warmup": 0.05},
}
_BLENDED = {
    "quantization.weights": {
        "bits": 3,
        "range": "absmax",
        "blend": {"name": "cubic", "start": 0.0, "stop": 1.0, "window": [0.0, 0.4], "phases": 2},
    },
    "quantization.activations": {"bits": 4, "place": "layer_inputs", "grid": "asymmetric"},
    "training.optimizer": "adamw",
    "training.checkpoint_every": 2,
}
_TEACHER = {
    "model": {"name": "two_linear_layers", "hidden": 4, "columns": 6},
    "data": {"name": "gaussian_teacher", "batch_size": 16, "rows": 8, "columns": 6},
    "quantization": {
        "activations": {
            "bits": 1,
            "grid": "unsigned",
            "rounding": "ceil",
            "place": "relu_outputs",
            "range": {"name": "fixed", "scale": 1.0},
            "estimator": "relu",
        }
    },
    "training.loss": "squared_error",
}
_FILES = {
    "model": {"name": "lenet5", "weights": "weights.pt"},
    "data": {"name": "arrays", "file": "images.npz", "root": ".", "mean": [0.5], "std": [0.5]},
}
BASES: list[dict[str, Any]] = [
    recipe(),
    recipe(_LEARNED),
    recipe(_BLENDED),
    recipe(_TEACHER),
    recipe(_FILES),
]


def make(random: Random, folder: Path, index: int) -> list[str]:
    """Write a mutated recipe into a folder; return the command that reads it."""
    base = random.choice(BASES)
    text = yaml.safe_dump(base, sort_keys=False)
    kind = index % 4
    if kind == 0:
        data = changed_bytes(text.encode(), random)
    elif kind == 1:
        data = changed_lines(text, random).encode()
    else:
        data = yaml.safe_dump(changed_data(base, random), sort_keys=False, allow_unicode=True)
        data = data.encode()
    (folder / "r.yaml").write_bytes(data)
    how = index % 20
    if how == 6:
        return ["convert", "r.yaml", "--output", "made/m.safetensors", "--device", "cpu"]
    if how == 7:
        return ["train", "r.yaml", "--run-dir", "run", *ONE_EPOCH, "--device", "cpu"]
    return ["inspect", "r.yaml"]


ONE_EPOCH = [
    *("--set", "training.epochs=1", "--set", "data.train_samples=64", "--set", "data.repeats=1"),
]

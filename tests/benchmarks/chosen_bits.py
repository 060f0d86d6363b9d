"""Bits that are chosen against the same bits everywhere, in a file of the same size.

    python tests/benchmarks/chosen_bits.py WEIGHTS DATA FOLDER [--bits 4] [--seeds 3] [--epochs 2]

ResNet-20 with the published CIFAR weights, 10,000 training images, activations of 8 bits: `uniform`
has weights of so many bits in every layer; `chosen` gets 2 to 8 bits in each, by a size budget of
just the bytes of the uniform file. Both are judged as integers by the images of DATA's x_test,
without training and after so many epochs. What is done stays in FOLDER, and is not done again.

WEIGHTS: resnet20-12fca82f.th. DATA: folder with a cifar10.npz whose x_test the network never saw.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from qtool import pipeline
from qtool.comparison.statistics.differences import Reached, differences_from_first
from qtool.runs.sources import Integer

PHASES, ARMS = ("untrained", "trained"), ("uniform", "chosen")


def recipe(weights: Path, data: Path, bits: int, seed: int, epochs: int) -> dict[str, object]:
    """Return the recipe of the uniform arm."""
    return {
        "seed": seed,
        "model": {"name": "resnet20", "shortcut": "subsample", "weights": str(weights)},
        "data": {
            "name": "arrays",
            "file": "cifar10.npz",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "root": str(data),
            "batch_size": 128,
            "image_size": 32,
            "train_samples": 10_000,
        },
        "quantization": {"weights": {"bits": bits}, "activations": {"bits": 8}},
        "training": {
            "epochs": epochs,
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
            "learning_rate": {"name": "cosine", "start": 0.01, "stop": 0.0},
        },
    }


@torch.no_grad()
def judged(integer: Path) -> np.ndarray:
    """Return which validation images an integer model gets right."""
    given = Integer.open(integer)
    right = [given.model(x).argmax(1) == y for x, y in given.data.validation.batches(0)]
    return torch.cat(right).numpy()


def measured(place: Path, given: dict[str, object], *, trains: bool) -> dict[str, object]:
    """Make an arm's file, unless it is there; return its bytes, and what it gets right."""
    kept = place / "measured.json"
    if not kept.is_file():
        place.mkdir(parents=True, exist_ok=True)
        path, run = place / "r.yaml", place / "run"
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        if trains:
            pipeline.train(path, run_dir=run, resume=run.exists())
            pipeline.convert(run)
            integer = run / "integer.safetensors"
        else:
            integer = place / "untrained.safetensors"
            pipeline.convert(path, output=integer)
        onnx = place / "model.onnx"
        pipeline.export(integer, output=onnx)
        right = judged(integer)
        np.save(place / "right.npy", right)
        said = {"bytes": onnx.stat().st_size, "accuracy": float(right.mean())}
        kept.write_text(json.dumps(said))
    found: dict[str, object] = json.loads(kept.read_text())
    return found | {"right": np.load(place / "right.npy")}


def main() -> None:
    """Measure what is left, seed by seed, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[dict[str, object]]] = {}
    for seed in range(asked.seeds):
        for phase in PHASES:
            limit = 0
            for arm in ARMS:
                given = recipe(asked.weights, asked.data, asked.bits, seed, asked.epochs)
                if arm == "chosen":
                    given["quantization"]["budget"] = {"size": f"{limit}B"}
                place = asked.folder / f"{asked.bits}-bits" / f"seed-{seed}" / f"{phase}-{arm}"
                one = measured(place, given, trains=phase == "trained")
                limit = int(str(one["bytes"]))
                found.setdefault((phase, arm), []).append(one)
                words = f"{one['bytes']:,} bytes, {100 * one['accuracy']:.2f} %"
                sys.stdout.write(f"seed {seed}, {phase}, {arm}: {words}\n")
                sys.stdout.flush()
    for phase in PHASES:
        arms = [
            Reached(arm, [one["accuracy"] for one in each], [one["right"] for one in each])
            for arm, each in ((arm, found[phase, arm]) for arm in ARMS)
        ]
        (gap,) = differences_from_first(arms)
        sys.stdout.write(f"{phase}: {gap.to_json()}\n")


if __name__ == "__main__":
    main()

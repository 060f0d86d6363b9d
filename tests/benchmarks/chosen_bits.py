"""Bits that are chosen against the same bits everywhere, in a file of the same size.

    python tests/benchmarks/chosen_bits.py WEIGHTS DATA FOLDER [--bits 4] [--seeds 3] [--epochs 2]

ResNet-20 with the published CIFAR weights, 10,000 training images, activations of 8 bits: `uniform`
has weights of so many bits in every layer; `chosen` gets 2 to 8 bits in each, by a size budget of
just the bytes of the uniform file. Both are judged as integers by the images of DATA's x_test,
without training and after so many epochs. What is done stays in FOLDER, and is not done again.

WEIGHTS: resnet20-12fca82f.th. DATA: folder with a cifar10.npz whose x_test the network never saw.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from qtool import pipeline
from qtool.comparison.statistics.differences import Reached, differences_from_first
from qtool.runs.access import OF_A_FILE
from qtool.runs.converted.integer import Integer

PHASES, ARMS = ("untrained", "trained"), ("uniform", "chosen")


class Judged(NamedTuple):
    """Bytes of a file, which images its network gets right, and the loss of each."""

    bytes: int
    right: NDArray[np.bool_]
    losses: NDArray[np.float32]

    @property
    def accuracy(self) -> float:
        """Return the share of images."""
        return float(self.right.mean())


def recipe(
    asked: argparse.Namespace, seed: int, budget: dict[str, str] | None
) -> dict[str, object]:
    """Return the recipe of the uniform arm, or with a budget of the chosen one."""
    return {
        "seed": seed,
        "model": {"name": "resnet20", "shortcut": "subsample", "weights": str(asked.weights)},
        "data": {
            "name": "arrays",
            "file": "cifar10.npz",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "root": str(asked.data),
            "batch_size": 128,
            "image_size": 32,
            "train_samples": 10_000,
        },
        "quantization": {
            "weights": {"bits": asked.bits, "saturation": "avoid"},
            "activations": {"bits": 8},
            "budget": budget,
        },
        "training": {
            "epochs": asked.epochs,
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
            "learning_rate": {"name": "cosine", "start": 0.01, "stop": 0.0},
        },
    }


@torch.no_grad()
def judged(integer: Path, data: Path) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return which validation images an integer model gets right, and the loss of each."""
    given = Integer.open(integer, replace(OF_A_FILE, data_root=data))
    answers = [(given.model(x), y) for x, y in given.data.validation.batches(0)]
    right = torch.cat([logits.argmax(1) == y for logits, y in answers])
    losses = torch.cat([cross_entropy(logits, y, reduction="none") for logits, y in answers])
    return right.numpy(), losses.numpy()


def measured(place: Path, given: dict[str, object], data: Path, *, trains: bool) -> Judged:
    """Make an arm's file, unless it is there; return its bytes, and what it gets right."""
    kept = place / "bytes.txt"
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
        pipeline.export(integer, output=onnx, unproven=True, data_root=data)
        right, losses = judged(integer, data)
        np.savez(place / "judged.npz", right=right, losses=losses)
        kept.write_text(str(onnx.stat().st_size))
    with np.load(place / "judged.npz") as of_images:
        return Judged(int(kept.read_text()), of_images["right"], of_images["losses"])


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
    found: dict[tuple[str, str], list[Judged]] = {}
    for seed in range(asked.seeds):
        for phase in PHASES:
            budget: dict[str, str] | None = None
            for arm in ARMS:
                place = asked.folder / f"{asked.bits}-bits" / f"seed-{seed}" / f"{phase}-{arm}"
                trains, given = phase == "trained", recipe(asked, seed, budget)
                one = measured(place, given, asked.data, trains=trains)
                budget = {"size": f"{one.bytes}B"}
                found.setdefault((phase, arm), []).append(one)
                words = (
                    f"{one.bytes:,} bytes, {100 * one.accuracy:.2f} %, loss {one.losses.mean():.4f}"
                )
                sys.stdout.write(f"seed {seed}, {phase}, {arm}: {words}\n")
                sys.stdout.flush()
    for phase in PHASES:
        arms = [
            Reached(arm, [one.accuracy for one in each], [one.right for one in each])
            for arm, each in ((arm, found[phase, arm]) for arm in ARMS)
        ]
        (gap,) = differences_from_first(arms)
        sys.stdout.write(f"{phase}: {gap.to_json()}\n")
        pairs = zip(found[phase, "chosen"], found[phase, "uniform"], strict=True)
        lost = np.mean([one.losses - other.losses for one, other in pairs], axis=0)
        error = 1.96 * lost.std(ddof=1) / len(lost) ** 0.5
        sys.stdout.write(f"{phase}: loss {lost.mean():+.4f} +- {error:.4f}, over images\n")


if __name__ == "__main__":
    main()

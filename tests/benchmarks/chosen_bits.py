"""Bits that are chosen against the same bits everywhere, in a file of the same size.

    python tests/benchmarks/chosen_bits.py WEIGHTS DATA FOLDER [--bits 4] [--seeds 3] [--epochs 2]
        [--phases untrained,trained]

ResNet-20 with the published CIFAR weights, 10,000 training images, activations of 8 bits: `uniform`
has weights of so many bits in every layer; `chosen` gets 2 to 8 bits in each, by a size budget of
just the bytes of the uniform file. Both are judged as integers by the images of DATA's x_test,
without training and after so many epochs: by what they get right, by their loss, and by how far
their logits y are from those of the float network, y*:

    |y - y*|^2 / mean over images of |y* - mean over images of y*|^2

What is done stays in FOLDER, and is not done again.

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
from qtool.recipe.file import load_recipe
from qtool.runs.access import OF_A_FILE
from qtool.runs.built import build
from qtool.runs.converted.integer import Integer

PHASES, ARMS = ("untrained", "trained"), ("uniform", "chosen")


class Judged(NamedTuple):
    """Bytes of a file, and for each image: told right or not, loss, and error of the logits."""

    bytes: int
    right: NDArray[np.bool_]
    losses: NDArray[np.float32]
    errors: NDArray[np.float32]

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
def judged(integer: Path, recipe: Path, data: Path) -> dict[str, NDArray[np.generic]]:
    """Return what there is to say of each validation image, by its name in `Judged`."""
    given = Integer.open(integer, replace(OF_A_FILE, data_root=data))
    network = build.make_network(load_recipe(recipe), given.data).model.eval()
    batches = list(given.data.validation.batches(0))
    labels = torch.cat([y for _, y in batches])
    logits = torch.cat([given.model(x) for x, _ in batches])
    expected = torch.cat([network(x) for x, _ in batches])
    spread = (expected - expected.mean(0)).square().sum(1).mean()
    return {
        "right": (logits.argmax(1) == labels).numpy(),
        "losses": cross_entropy(logits, labels, reduction="none").numpy(),
        "errors": ((logits - expected).square().sum(1) / spread).numpy(),
    }


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
        np.savez(place / "judged.npz", allow_pickle=False, **judged(integer, path, data))
        kept.write_text(str(onnx.stat().st_size))
    with np.load(place / "judged.npz") as of_images:
        return Judged(int(kept.read_text()), **of_images)


def main() -> None:
    """Measure what is left, seed by seed, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--phases", default=",".join(PHASES))
    asked = parser.parse_args()
    phases = [phase for phase in PHASES if phase in asked.phases.split(",")]
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[Judged]] = {}
    for seed in range(asked.seeds):
        for phase in phases:
            budget: dict[str, str] | None = None
            for arm in ARMS:
                place = asked.folder / f"{asked.bits}-bits" / f"seed-{seed}" / f"{phase}-{arm}"
                trains, given = phase == "trained", recipe(asked, seed, budget)
                one = measured(place, given, asked.data, trains=trains)
                budget = {"size": f"{one.bytes}B"}
                found.setdefault((phase, arm), []).append(one)
                means = f"loss {one.losses.mean():.4f}, error {one.errors.mean():.5f}"
                words = f"{one.bytes:,} bytes, {100 * one.accuracy:.2f} %, {means}"
                sys.stdout.write(f"seed {seed}, {phase}, {arm}: {words}\n")
                sys.stdout.flush()
    for phase in phases:
        arms = [
            Reached(arm, [one.accuracy for one in each], [one.right for one in each])
            for arm, each in ((arm, found[phase, arm]) for arm in ARMS)
        ]
        (gap,) = differences_from_first(arms)
        sys.stdout.write(f"{phase}: {gap.to_json()}\n")
        pairs = list(zip(found[phase, "chosen"], found[phase, "uniform"], strict=True))
        for what in ("losses", "errors"):
            more = np.mean([getattr(a, what) - getattr(b, what) for a, b in pairs], axis=0)
            half = 1.96 * more.std(ddof=1) / len(more) ** 0.5
            sys.stdout.write(f"{phase}: {what} {more.mean():+.5f} +- {half:.5f}, over images\n")


if __name__ == "__main__":
    main()

"""How long a comparison takes with several trials at once, beside one after the other.

    python tests/benchmarks/many_trials.py --seeds 5

Six estimators of weights are compared on digits by a LeNet-5: with `--jobs 2`, one after the other
with all threads, and one after the other with one thread, which must give what `--jobs 2` gives, to
the last bit of every trained weight. Each is a command of its own, start of Python included.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

from qtool.runs.machine import processor_name

RECIPE = """
model: {name: lenet5}
data: {name: digits, batch_size: 64, image_size: 28}
quantization:
  weights: {bits: 4, range: absmax, estimator: straight_through}
training: {epochs: EPOCHS, optimizer: {name: sgd, momentum: 0.9}, learning_rate: 0.02}
"""
ESTIMATORS = (
    "straight_through,identity,sinusoidal,hyperbolic_tangent,element_wise_gradient_scaling,"
    "triangular"
)
WAYS = {
    "jobs": ["--jobs", "2"],
    "all": [],
    "one": ["--threads", "1"],
}


def seconds(place: Path, way: str, seeds: int) -> float:
    """Run a comparison into a folder that is called after a way, and return how long it took."""
    argv = ["compare", "estimators", "r.yaml", "--estimators", ESTIMATORS, "--seeds", str(seeds)]
    argv += ["--device", "cpu", "--output", way, *WAYS[way]]
    begun = time.monotonic()
    with (place / f"{way}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "qtool", *argv], cwd=place, stdout=log, stderr=log, check=True
        )
    return time.monotonic() - begun


def differing(place: Path, first: str, second: str) -> list[str]:
    """Return the trials whose weights are others in two ways."""
    found = []
    for path in sorted((place / first).rglob("model.safetensors")):
        trial = path.relative_to(place / first)
        a, b = load_file(path), load_file(place / second / trial)
        if a.keys() != b.keys() or any(not a[name].equal(b[name]) for name in a):
            found.append(str(trial.parent))
    return found


def main() -> None:
    """Print how long each way takes, and which trials differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    print(f"{processor_name()}, {os.cpu_count()} cores")
    with TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "r.yaml").write_text(RECIPE.replace("EPOCHS", str(asked.epochs)))
        took = {way: seconds(place, way, asked.seeds) for way in WAYS}
        for way, options in WAYS.items():
            print(f"{' '.join(options) or 'neither':12} {took[way]:7.1f} s")
        print(f"--jobs 2 is {took['all'] / took['jobs']:.2f} x as fast as one after the other")
        different = differing(place, "jobs", "one")
        same = (place / "jobs/comparison.json").read_bytes() == (
            place / "one/comparison.json"
        ).read_bytes()
        print(f"trials that differ from --threads 1: {', '.join(different) or 'none'}; {same=}")


if __name__ == "__main__":
    main()

"""Real comparisons of an estimator with itself: how often they name a winner.

    python tests/benchmarks/same_arms.py FOLDER [MINUTES]

trains LeNet-5 on digits with `straight_through` and with a user's one whose gradient is 1.0000002
times that, in 12 comparisons of 2 seeds and 8 of 3, no seed twice: a last bit makes two networks of
each seed. It stops after so many minutes, and goes on when it is started again.
"""

import sys
import time
from pathlib import Path

import yaml

from qtool import pipeline
from qtool.reports.comparisons import Comparison

SAME = """
def same(grad, u, low, high):
    return grad * 1.0000002 * ((low <= u) & (u <= high))
"""
RECIPE = {
    "seed": 0,
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "batch_size": 64, "image_size": 16},
    "quantization": {
        "weights": {"bits": 4, "range": "learned", "estimator": "straight_through"},
        "activations": {"bits": 4, "range": "learned"},
    },
    "training": {
        "epochs": 12,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
        "learning_rate": {"name": "cosine", "start": 0.1, "stop": 0.0, "warmup": 0.05},
    },
}
OF_TWO, OF_THREE = 12, 8


def main(folder: Path, minutes: float) -> None:
    """Train what is left, as long as there is time, and print what each comparison says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "same.py").write_text(SAME)
    (folder / "digits.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    until, first, named, done = time.monotonic() + 60 * minutes, 0, 0, 0
    sizes = [2] * OF_TWO + [3] * OF_THREE
    for number, count in enumerate(sizes):
        place, seeds = folder / f"comparison-{number}", list(range(first, first + count))
        first += count
        report = place / "comparison.json"
        known = report.is_file() and "partial" not in report.read_text()
        if not known and time.monotonic() > until:
            break
        result = (
            Comparison.read(report)
            if known
            else pipeline.compare_estimators(
                folder / "digits.yaml",
                names=["straight_through", "same.py:same"],
                on="weights",
                seeds=seeds,
                output=place,
                device="cpu",
            )
        )
        item = result.differences[0]
        winner = item.low is not None and item.high is not None and not item.low <= 0 <= item.high
        named, done = named + winner, done + 1
        values = [[f"{100 * (v or 0):.1f}" for v in arm.values] for arm in result.arms]
        print(f"seeds {seeds}: {values}, std {100 * (item.std or 0):.2f}: {result.verdict}")
    print(f"{named} of {done} comparisons name a winner, of {len(sizes)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else float("inf"))

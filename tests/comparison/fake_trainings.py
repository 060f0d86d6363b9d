"""Trainings that take no time, for executors: each arm's name says what becomes of its trials.

They write down in a trial's folder how often it was tried, and where.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from qtool.comparison.execution.trials import ComparisonFolder, Trial
from qtool.errors import InputError
from qtool.recipe import load_recipe
from qtool.reports.results import Summary
from qtool.stopping import Stopped

RECIPE = """
model: {name: lenet5}
data: {name: digits, image_size: 16, train_samples: 64}
quantization:
  weights: {bits: 4, estimator: ESTIMATOR}
training: {epochs: EPOCHS, learning_rate: 0.1}
"""
LARGE = "-" * 200_000  # more than a pipe holds


def trials_of(folder, *arms, seeds=(0,), threads=None, estimator="identity", epochs=1):
    path = folder / "r.yaml"
    path.write_text(RECIPE.replace("ESTIMATOR", estimator).replace("EPOCHS", str(epochs)))
    recipe, place = load_recipe(path), ComparisonFolder(folder / "c")
    return [Trial(arm, s, recipe, place.run(arm, s), threads) for arm in arms for s in seeds]


def summary_of(trial, status="finished", error=None):
    return Summary(
        status=status,
        run=str(trial.folder),
        epochs=1,
        seconds=0.0,
        parameters=1,
        weight_bits_mean=4.0,
        validation_accuracy=(1 + trial.seed) / 100,
        validation_loss=None,
        train_accuracy=None,
        train_loss=None,
        error=error,
    )


@dataclass(frozen=True)
class Fake:
    """Trains nothing.

    Attributes:
        seconds: that a trial takes.
    """

    seconds: float = 0.0

    def __call__(self, trial: Trial) -> Summary:
        place = trial.folder.path
        place.mkdir(parents=True, exist_ok=True)
        with (place / "tries").open("a") as file:
            file.write(f"{os.getpid()}\n")
        first = tries_of(trial) == 1
        arm = trial.arm
        if arm == "starves" or (arm == "starves once" and first):
            raise MemoryError("as a test wants it")
        if arm == "killed" or (arm == "killed once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if arm == "refused":
            raise InputError("no such data")
        if arm == "speaks":
            sys.stdout.write("a word on standard output\n")
            sys.stdout.flush()
            sys.stderr.write("a word on standard error\n")
        if arm == "waits":
            wait(place)
        time.sleep(self.seconds)
        if arm == "diverges":
            return summary_of(trial, "failed", "the loss is not finite")
        return summary_of(trial, error=LARGE if arm == "large" else None)


def wait(place: Path) -> None:
    """Wait to be asked to stop, and write a checkpoint then, which takes a while."""
    (place / "waits").touch()
    try:
        for _ in range(12_000):  # a training is no single call either
            time.sleep(0.05)
    except Stopped:
        time.sleep(0.3)
        (place / "checkpoint").touch()
        raise


def tries_of(trial: Trial) -> int:
    """Return how often a trial was tried."""
    return len(processes_of(trial))


def processes_of(trial: Trial) -> list[int]:
    """Return the processes that tried a trial, one for each time."""
    path = trial.folder.path / "tries"
    return [int(line) for line in path.read_text().splitlines()] if path.is_file() else []

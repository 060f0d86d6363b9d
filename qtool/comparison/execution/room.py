"""Whether a disk has room for what a comparison keeps, before it starts."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qtool.comparison.execution.kept_files import Keep
from qtool.comparison.execution.trials import Trial
from qtool.errors import QtoolError, WriteError
from qtool.quantizers.oscillation import SAMPLE
from qtool.recipe.recipe import Recipe
from qtool.reports.words import size
from qtool.runs.built import build
from qtool.runs.kept.folder import RunFolder
from qtool.training.optimizers import OPTIMIZERS

PER_TENSOR = 200  # bytes: its name, type, shape and place in a file
RANDOM = 5056  # bytes of the state of torch's generator
LEFT_ALONE = 2**20  # bytes: for reports


@dataclass(frozen=True)
class Sizes:
    """Bytes of the large files of a run.

    Attributes:
        weights: of the network.
        checkpoint: with what the optimizer keeps of it.
    """

    weights: int
    checkpoint: int

    def kept(self, keep: Keep) -> int:
        """Return the bytes that a finished trial keeps."""
        checkpoints = {"all": 2, "last": 1, "none": 0}[keep]
        return self.weights + checkpoints * self.checkpoint


def sizes_of(recipe: Recipe) -> Sizes:
    """Return how large the files of a run become, as far as the recipe tells."""
    with torch.device("meta"):
        network = build.make_network_without_data(recipe).model
    parameters = list(network.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters)
    others = sum(b.numel() * b.element_size() for b in network.buffers())
    copies = 2 if OPTIMIZERS.facts(recipe.training.optimizer.name).adaptive else 1
    copies += recipe.training.ema is not None
    watched = sum(_watched_bytes(p.numel(), recipe) for p in parameters if p.ndim > 1)
    named = PER_TENSOR * len(parameters)
    state = trained + others + watched + 8 * named
    kept = trained + others + named + (state if recipe.data.holdout else 0)  # best.pt
    return Sizes(kept, copies * trained + state + RANDOM)


def _watched_bytes(count: int, recipe: Recipe) -> int:
    """Return the bytes by which the oscillations of a weight are watched."""
    sections = [recipe.quantization.weights, *(o.weights for o in recipe.quantization.overrides)]
    if any(getattr(section, "freezing", None) is not None for section in sections):
        return 17 * count  # codes, directions, frequencies, averages, and which are frozen
    return 12 * math.ceil(count / math.ceil(count / SAMPLE))


def refuse_without_room(trials: Sequence[Trial], folder: Path, keep: Keep, *, at_once: int) -> None:
    """Check that the disk has room for trials that are not finished.

    Args:
        trials: of the comparison.
        folder: of the comparison, which need not be there yet.
        keep: which checkpoints stay.
        at_once: how many trials are trained at a time; each writes one checkpoint more.

    Raises:
        WriteError: If it has not; says how much is missing, and what would be enough.
    """
    left = [trial for trial in trials if not is_finished(trial.folder)]
    sizes = _sizes_of_all(left)
    free = _free(folder)
    if not sizes or needed(sizes, keep, at_once) <= free:
        return
    fits = [k for k in ("last", "none") if needed(sizes, k, at_once) <= free]
    less = f"--keep {fits[0]} prunes them as trials finish, or choose" if fits else "choose"
    raise WriteError(
        f"{folder}: {len(left)} trials with their checkpoints and reports take about "
        f"{size(needed(sizes, keep, at_once))}, and {size(free)} are free there; {less} another "
        f"--output"
    )


def needed(sizes: Sequence[Sizes], keep: Keep, at_once: int) -> int:
    """Return the bytes that trials and reports take at their most."""
    largest = max(each.checkpoint for each in sizes)
    training = 3 - {"all": 2, "last": 1, "none": 0}[keep]  # newest, previous, and one being written
    kept = sum(each.kept(keep) for each in sizes)
    return kept + min(at_once, len(sizes)) * training * largest + LEFT_ALONE


def is_finished(folder: RunFolder) -> bool:
    """Tell whether a trial's folder says that it is finished; a damaged one does not."""
    try:
        return folder.finished_summary() is not None
    except QtoolError:
        return False


def _sizes_of_all(trials: Sequence[Trial]) -> list[Sizes]:
    known: dict[str, Sizes] = {}
    found: list[Sizes] = []
    for trial in trials:
        recipe = trial.recipe
        training = recipe.training
        key = repr((recipe.model, recipe.data, training.optimizer, training.ema))
        if key not in known:
            known[key] = sizes_of(recipe)
        found.append(known[key])
    return found


def _free(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free

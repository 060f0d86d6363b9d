"""Figures of each epoch for other tools, beside metrics.jsonl and metrics.csv, always there.

Both tools are optional packages. What they are told is what a line of metrics.jsonl says, under its
keys (`flip_ratio/conv1` for a figure of a layer), at the number of training steps. Training does
not depend on them: where one fails on the way, that is said once, and training goes on without it.
"""

import os
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from qtool.console import warn
from qtool.errors import InputError, RecipeError
from qtool.files.whole import write_text
from qtool.recipe.recipe import Recipe
from qtool.reports.results import EpochLine
from qtool.runs.kept.folder import RunFolder

PROJECT = "WANDB_PROJECT"  # environment variable


class Tracker(Protocol):
    """A tool that is told of figures."""

    def tell(self, figures: Mapping[str, float], step: int) -> None:
        """Take the figures after so many training steps."""
        ...

    def close(self) -> None:
        """End."""
        ...


class TensorBoard:
    """Writes event files into the folder `tensorboard` of the run.

    A run that goes on tells TensorBoard to forget what came after the checkpoint.
    """

    def __init__(self, path: Path, history: Sequence[EpochLine]) -> None:
        """Begin after the epochs that are done, which a new folder is told of, too."""
        there = path.is_dir()
        after = history[-1].step + 1 if history else 0
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(path), purge_step=after if there else None)
        for line in [] if there else history:
            self.tell(figures_of(line), line.step)

    def tell(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures after so many training steps."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End."""
        self._writer.close()


class WeightsAndBiases:
    """Sends figures to Weights & Biases, or keeps them in the run's folder (WANDB_MODE=offline).

    The run's id there lies in `wandb.id`, so that a run that goes on is one run there, too.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        """Begin a run there, or go on with it.

        Raises:
            InputError: If it cannot be begun, as without an account.
        """
        kept = folder.path / "wandb.id"
        if not kept.is_file():
            write_text(kept, uuid.uuid4().hex)
        wandb = import_module("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get(PROJECT, "qtool"),
                name=folder.path.resolve().name,
                id=kept.read_text().strip(),
                resume="allow",
                dir=str(folder.path),
                config=recipe.as_dict(),
                settings=wandb.Settings(console="off", silent=True),
            )
        # its errors are its own, of the network, or of files; none of them is a fault of qtool's
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"training.scalars: wandb cannot begin: {reason}; log in, set WANDB_MODE=offline, "
                f"or leave it out"
            ) from error

    def tell(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures after so many training steps."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """End."""
        self._run.finish()


MADE: dict[str, Callable[[Recipe, RunFolder, Sequence[EpochLine]], Tracker]] = {
    "tensorboard": lambda recipe, folder, history: TensorBoard(
        folder.path / "tensorboard", history
    ),
    "wandb": lambda recipe, folder, history: WeightsAndBiases(recipe, folder),
}


def refuse_missing_trackers(recipe: Recipe) -> None:
    """Check that the packages are installed that a recipe's scalars take.

    Raises:
        RecipeError: If one is not.
    """
    for name in recipe.training.scalars:
        if name in MADE and find_spec(name) is None:
            raise RecipeError(
                f'training.scalars: {name} is not installed; pip install "qtool[{name}]", or leave '
                f"it out"
            )


@contextmanager
def trackers(
    recipe: Recipe, folder: RunFolder, history: Sequence[EpochLine]
) -> Generator[Callable[[EpochLine], None]]:
    """Begin to tell what a recipe's scalars ask for; yields what takes each epoch's line.

    Args:
        recipe: of the run.
        folder: of the run.
        history: epochs that are done.

    Raises:
        InputError: If one of them cannot begin.
    """
    names = [name for name in dict.fromkeys(recipe.training.scalars) if name in MADE]
    begun = {name: MADE[name](recipe, folder, history) for name in names}

    def tell(line: EpochLine) -> None:
        for name, tracker in list(begun.items()):
            try:
                tracker.tell(figures_of(line), line.step)
            # whatever a tool makes of network and disk is no reason to lose a training
            except Exception as error:
                warn(f"training.scalars: {name} fails, and is told no more: {error}")
                del begun[name]

    try:
        yield tell
    finally:
        for tracker in begun.values():
            with suppress(Exception):
                tracker.close()


def figures_of(line: EpochLine) -> dict[str, float]:
    """Return the numbers of an epoch's line, those of layers under `measure/layer`."""
    found: dict[str, float] = {}
    for key, value in line.to_json().items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": each for name, each in value.items() if _is_number(each)}
        elif _is_number(value):
            found[key] = value
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

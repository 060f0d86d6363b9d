"""What a run shows while it trains: a bar, and a line for each epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from qtool.console import SCREEN, say
from qtool.reports.results import EpochLine


class EpochBar:
    """The progress bar of a run: loss, accuracy, rate and time left; silent off a terminal."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def step(self, epoch: int, loss: float, accuracy: float | None, rate: float) -> None:
        """Move on by one training step; `rate` is in images per second."""
        known = "" if accuracy is None else f"  accuracy {accuracy:.3f}"
        note = f"epoch {epoch}  loss {loss:.3f}{known}  {rate:.0f} images/s"
        self._bar.update(self._task, advance=1, description=note)


@contextmanager
def progress_bar(steps: int, done: int) -> Iterator[EpochBar]:
    """Show a bar over `steps` training steps of which `done` lie behind."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=SCREEN,
        transient=True,
        disable=not SCREEN.is_terminal,
    ) as bar:
        yield EpochBar(bar, bar.add_task("starting", total=steps, completed=done))


def say_epoch(line: EpochLine, epochs: int) -> None:
    """Show one epoch's line of metrics."""
    parts = [
        f"epoch {line.epoch:>3}/{epochs}",
        _judged("train", line.train_loss, line.train_accuracy),
        _judged("hold-out", line.holdout_loss, line.holdout_accuracy),
        _judged("validation", line.validation_loss, line.validation_accuracy),
    ]
    say(f"{'  '.join(filter(None, parts))}{_blend(line)}  {line.seconds:.1f} s")


def _judged(by: str, loss: float | None, accuracy: float | None) -> str:
    """Return a loss and an accuracy for a line, or nothing where there are none."""
    if loss is None:
        return ""
    return f"{by} loss {loss:.4f}" + ("" if accuracy is None else f"  accuracy {accuracy:.4f}")


def _blend(line: EpochLine) -> str:
    """Return how the blended network does, or nothing where there is no blend."""
    if line.alpha is None:
        return ""
    share = line.blended_validation_accuracy
    blended = "" if share is None else f" (blended {share:.4f})"
    return f"{blended}  alpha {line.alpha:.3f}"

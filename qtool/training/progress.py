"""What a run shows while it trains: a bar, and a line for each epoch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from qtool.console import SCREEN, STATUS, say
from qtool.reports.results import EpochLine
from qtool.reports.words import time_left

MARKS = 20  # of the bar
_AMONG: list[Callable[[], str]] = []  # what says how far all of several runs are


class EpochBar:
    """The progress of a run: share done, time left, loss, accuracy, pace; silent off a terminal."""

    def __init__(self, steps: int, epochs: int, done: int) -> None:
        """Begin with `done` training steps behind, of `steps` in each of `epochs`."""
        self._each, self._epochs = steps, epochs
        self._before, self._begun = done, time.monotonic()

    def step(self, done: int, loss: float, accuracy: float | None, rate: float) -> None:
        """Show that `done` training steps lie behind; `rate` is in images per second."""
        if not STATUS.is_due():
            return
        share, epoch = done / (self._each * self._epochs), (done - 1) // self._each + 1
        known = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
        parts = [
            f"epoch {epoch}/{self._epochs}",
            f"{100 * share:3.0f} %",
            f"{time_left(self.seconds_left(done))} left",
            *(said() for said in _AMONG[-1:]),
            f"loss {loss:.3f}{known}",
            f"{rate:,.0f} images/s",
            f"[{'#' * round(MARKS * share):{MARKS}}]",
        ]
        STATUS.show(list(filter(None, parts)))

    def seconds_left(self, done: int) -> float:
        """Return the seconds to the end of the run, at the pace so far, judging included."""
        taken = time.monotonic() - self._begun
        return taken / max(1, done - self._before) * (self._each * self._epochs - done)


@contextmanager
def progress_bar(steps: int, epochs: int, done: int) -> Iterator[EpochBar]:
    """Show how far a run is, of whose training steps `done` lie behind.

    Args:
        steps: in an epoch.
        epochs: of the run.
        done: steps that lie behind at the beginning.
    """
    try:
        yield EpochBar(steps, epochs, done)
    finally:
        STATUS.clear()


@contextmanager
def one_of_several(among: Callable[[], str]) -> Iterator[None]:
    """Say beside the progress of each run inside how far all of them are."""
    _AMONG.append(among)
    try:
        yield
    finally:
        _AMONG.pop()


def say_epoch(line: EpochLine, epochs: int) -> None:
    """Show one epoch's line of metrics; on a terminal as much of it as a line has room for."""
    width = SCREEN.width if SCREEN.is_terminal else None
    say(epoch_text(line, epochs, width))


def epoch_text(line: EpochLine, epochs: int, width: int | None = None) -> str:
    """Return an epoch's losses, accuracies and time.

    Args:
        line: of metrics.
        epochs: of the whole training.
        width: of the screen, in columns; what fits least is left out, seconds first.
    """
    taught = line.distillation_loss is not None  # then it is not what validation tells of
    losses = {
        "mixed" if taught else "train": line.train_loss,
        "hold-out": line.holdout_loss,
        "validation": line.validation_loss,
    }
    shares = {
        "train": line.train_accuracy,
        "hold-out": line.holdout_accuracy,
        "validation": line.validation_accuracy,
    }
    judged = {key: share for key, share in shares.items() if key != "train"}
    all_of_it, without_time = (losses, shares, True), (losses, shares, False)
    text = ""
    for some, accuracies, timed in (all_of_it, without_time, (losses, judged, False)):
        text = _epoch(line, epochs, some, accuracies, timed=timed)
        if width is None or len(text) <= width:
            return text
    return text


def _epoch(
    line: EpochLine,
    epochs: int,
    losses: Mapping[str, float | None],
    shares: Mapping[str, float | None],
    *,
    timed: bool,
) -> str:
    known = {key: f"{loss:.3f}" for key, loss in losses.items() if loss is not None}
    right = {key: f"{100 * share:.1f} %" for key, share in shares.items() if share is not None}
    blended = line.blended_validation_accuracy
    if blended is not None:
        right["blended"] = f"{100 * blended:.1f} %"
    named = [f"{loss} {key}" for key, loss in known.items()]
    same = len(right) == 1 or list(right) == list(known)  # in the order of the losses
    accurate = list(right.values()) if same else [f"{said} {key}" for key, said in right.items()]
    parts = [
        f"epoch {line.epoch:>{len(str(epochs))}}/{epochs}",
        f"loss {', '.join(named)}",
        f"accuracy {', '.join(accurate)}" if accurate else "",
        "" if line.alpha is None else f"alpha {line.alpha:.3f}",
        f"{line.seconds:.1f} s" if timed else "",
    ]
    return "  ".join(filter(None, parts))

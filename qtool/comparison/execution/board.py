"""How far all trials of a comparison are: a table on a terminal, else a line for each that ends.

How many epochs a trial has done is read in its folder, wherever it is trained.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.live import Live
from rich.table import Table

from qtool.comparison.execution.trials import Outcome, Trial
from qtool.console import SCREEN, say, table, warn, without_colours
from qtool.reports.words import time_left
from qtool.word_table import FRAME

WARNING = "WARNING"


class Board(Protocol):
    """What an executor tells of its trials; threads may."""

    def begins(self, trial: Trial) -> None:
        """Say that a trial is trained from now on."""

    def ends(self, outcome: Outcome) -> None:
        """Say how a trial ended."""

    def hears(self, trial: Trial, line: str) -> None:
        """Say what a trial says."""


class Progress:
    """How far the trials are, and how long the rest takes at the pace so far."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = trials
        self.running: list[Trial] = []
        self.outcomes: dict[str, Outcome] = {}
        self._begun = time.monotonic()
        self._since: dict[str, float] = {}
        self._before = {str(trial): epochs_done(trial) for trial in trials}

    def begins(self, trial: Trial) -> None:
        """Take note that a trial is trained from now on."""
        self.running = [each for each in self.running if each is not trial] + [trial]
        self._since[str(trial)] = time.monotonic()

    def ends(self, outcome: Outcome) -> None:
        """Take note of how a trial ended."""
        self.running = [each for each in self.running if each is not outcome.trial]
        self.outcomes[str(outcome.trial)] = outcome

    def __str__(self) -> str:
        failed = sum(not outcome.finished for outcome in self.outcomes.values())
        lost = f", {failed} of them failed" if failed else ""
        left = self.seconds_left()
        more = "" if left is None or not left else f"; about {time_left(left)} left"
        return f"{len(self.outcomes)} of {len(self.trials)} trials done{lost}{more}"

    def seconds_left(self) -> float | None:
        """Return the seconds that the rest takes; None where no epoch was trained so far."""
        trained, left = 0, 0
        for trial in self.trials:
            name = str(trial)
            if name in self.outcomes or trial in self.running:
                done = epochs_done(trial)
                trained += max(0, done - self._before[name])
            else:
                done = self._before[name]
            left += 0 if name in self.outcomes else max(0, epochs_of(trial) - done)
        if not trained:
            return None
        return left * (time.monotonic() - self._begun) / trained

    def table(self, width: int) -> Table:
        """Return the arms with one cell for each seed, or one for all where they do not fit.

        Args:
            width: of the screen, in columns.
        """
        arms = dict.fromkeys(trial.arm for trial in self.trials)
        seeds = dict.fromkeys(trial.seed for trial in self.trials)
        cells = {(trial.arm, trial.seed): self._cell(trial) for trial in self.trials}
        widest = max(map(len, [*cells.values(), *(f"seed {seed}" for seed in seeds)]))
        if max(map(len, arms)) + 4 + (widest + FRAME) * len(seeds) <= width:
            columns = ["arm", *(f"#seed {seed}" for seed in seeds)]
            rows = [[arm, *(cells.get((arm, seed), "") for seed in seeds)] for arm in arms]
        else:
            columns, rows = ["arm", "seeds"], []
            for arm in arms:
                begun = [cells[arm, seed] for seed in seeds if cells.get((arm, seed))]
                rows.append([arm, ", ".join(begun)])
        made = table(str(self), columns, rows)
        made.heading.style = "none"
        return made

    def _cell(self, trial: Trial) -> str:
        outcome = self.outcomes.get(str(trial))
        if outcome is not None:
            if not outcome.finished:
                return "failed"
            return "done" if outcome.accuracy is None else f"{100 * outcome.accuracy:.2f} %"
        if any(each is trial for each in self.running):
            done, of = epochs_done(trial), epochs_of(trial)
            left = self._seconds_left_of(trial, done)
            return f"{done}/{of}" + ("" if left is None else f" ({time_left(left)})")
        return ""

    def _seconds_left_of(self, trial: Trial, done: int) -> float | None:
        """Return the seconds that a trial takes yet; None where no epoch was trained so far."""
        trained = done - self._before[str(trial)]
        begun = self._since.get(str(trial))
        if trained < 1 or begun is None:
            return None
        return (epochs_of(trial) - done) * (time.monotonic() - begun) / trained


class _Lines:
    """Lines, where there is no terminal: also all that trials say, after their names."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begins(self, trial: Trial) -> None:
        self._progress.begins(trial)
        number = 1 + self._progress.trials.index(trial)
        say(f"trial {number}/{len(self._progress.trials)}: {trial}")

    def ends(self, outcome: Outcome) -> None:
        self._progress.ends(outcome)
        ended = "finished" if outcome.finished else "failed"
        say(f"{outcome.trial}: {ended}; {self._progress}")

    def hears(self, trial: Trial, line: str) -> None:
        say(f"{trial}: {line}")


class _Table:
    """A table that is kept up to date on a terminal, with what trials warn of above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.begins, self.ends = progress.begins, progress.ends

    def hears(self, trial: Trial, line: str) -> None:
        if line.startswith(WARNING):
            warn(f"{trial}: {line.removeprefix(WARNING).lstrip(': ')}")
        elif line.startswith("trial failed"):
            say(f"{trial}: {line}")


@contextmanager
def board(trials: Sequence[Trial]) -> Generator[Board]:
    """Show inside how far trials are, on standard error."""
    progress = Progress(trials)
    if not SCREEN.is_terminal or SCREEN.quiet or without_colours():
        yield _Lines(progress)
        return
    with Live(
        get_renderable=lambda: progress.table(SCREEN.width),
        console=SCREEN,
        refresh_per_second=2,
        transient=True,
    ):
        yield _Table(progress)


def epochs_of(trial: Trial) -> int:
    """Return how many epochs a trial is trained for."""
    return trial.recipe.training.epochs


def epochs_done(trial: Trial) -> int:
    """Return how many epochs a trial has done, as its folder says."""
    try:
        return trial.folder.metrics.read_bytes().count(b"\n")
    except OSError:  # not begun, or just being replaced
        return 0

"""How the trials of a comparison are trained, and what is checked before the first of them is."""

import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qtool.comparison.execution.cluster import Cluster
from qtool.comparison.execution.executors import Executor, one_by_one, run_trials
from qtool.comparison.execution.kept_files import KEEPS, Keep, damage_of
from qtool.comparison.execution.processes import Processes
from qtool.comparison.execution.room import is_finished, refuse_without_room
from qtool.comparison.execution.slots import Slot, slots_for
from qtool.comparison.execution.trials import ComparisonFolder, Outcome, Train, Trial
from qtool.comparison.execution.unfinished import Kind, Unfinished
from qtool.console import say
from qtool.errors import InputError, QtoolError
from qtool.files.json_data import read_json
from qtool.runs.kept.begin import open_run

MOST_JOBS = 1024


@dataclass(frozen=True)
class About:
    """What comparison.json says while trials are trained, and where.

    Attributes:
        kind: of comparison.
        recipe: path of what the arms share.
        folder: of the comparison.
    """

    kind: Kind
    recipe: str
    folder: ComparisonFolder


@dataclass(frozen=True)
class Execution:
    """Where trials are trained, how many at once, and what is kept of each.

    Attributes:
        jobs: trials at once, each in a process of its own; None trains one after the other in
            this process.
        threads: of each trial; None takes 1 where several are trained at once, else all.
        keep: which checkpoints of a finished trial stay.
        cluster: address of a Ray cluster that trains them, LOCAL for one on this machine; `jobs` at
            once at the most.
        slots: processes that are started already.

    Raises:
        InputError: If there are no such numbers.
    """

    jobs: int | None = None
    threads: int | None = None
    keep: Keep = "all"
    cluster: str | None = None
    slots: Sequence[Slot] = ()

    def __post_init__(self) -> None:
        for option, count in (("--jobs", self.jobs), ("--threads", self.threads)):
            if count is not None and not 1 <= count <= MOST_JOBS:
                raise InputError(f"{option} {count}: give a number from 1 to {MOST_JOBS}")
        if self.keep not in KEEPS:
            raise InputError(f"--keep {self.keep}: choose none or last, or leave it out")

    @property
    def threads_of_each(self) -> int:
        """Return the threads that each trial is trained with."""
        if self.threads is not None:
            return self.threads
        several = self.cluster is not None or (self.jobs or 1) > 1
        return 1 if several else torch.get_num_threads()

    def executor(self, folder: Path) -> Executor:
        """Return what trains the trials of a comparison in a folder."""
        if self.cluster is not None:
            return Cluster(self.cluster, folder.absolute(), self.jobs)
        return one_by_one if self.jobs is None else Processes(self.jobs, self.slots)

    @contextmanager
    def started(self, trials: Sequence[Trial]) -> Generator["Execution"]:
        """Lend this with its processes started: they load meanwhile what trials need.

        A step that is timed meanwhile takes longer where processors are fewer than processes.

        Raises:
            InputError: If folders of trials hold other runs.
        """
        refuse_other_runs(trials)
        left = sum(not is_finished(trial.folder) for trial in trials)
        if self.jobs is None or self.cluster is not None or not left:
            yield self
            return
        with slots_for(min(self.jobs, left)) as slots:
            for slot in slots:
                slot.start(self.threads_of_each)
            yield replace(self, slots=slots)

    def crowded(self, processors: int) -> str:
        """Return what to say of more threads at once than there are processors, "" where not."""
        jobs, threads = self.jobs or 1, self.threads_of_each
        if self.cluster is not None or jobs == 1 or jobs * threads <= processors:
            return ""
        return (
            f"note: {jobs} trials of {threads} threads each share {processors} processors, and may "
            f"take longer than fewer at once"
        )

    def outcomes_of(
        self, trials: Sequence[Trial], train: Train, about: About
    ) -> dict[str, list[Outcome]]:
        """Train trials, and leave an unfinished comparison.json after each of them.

        Raises:
            InputError: If some were trained with another number of threads.
            WriteError: If the disk has no room for them.
        """
        threads = self.threads_of_each
        own = [replace(trial, threads=threads) for trial in trials]
        refuse_other_threads(own, about.folder)
        if note := self.crowded(os.cpu_count() or 1):
            say(note)
        refuse_without_room(own, about.folder.path, self.keep, at_once=self.jobs or 1)
        known = frozenset(str(trial) for trial in own if is_finished(trial.folder))
        report = Unfinished(about.folder.report, about.kind, about.recipe, own, known)
        return run_trials(own, train, self.executor(about.folder.path), report)


def refuse_other_runs(trials: Sequence[Trial]) -> None:
    """Check that no folder of a trial holds another run, before any time is spent on it.

    One that is damaged is left to its training, which mends it or says what became of it.

    Raises:
        InputError: If one does.
    """
    for trial in trials:
        folder = trial.folder
        try:
            open_run(trial.recipe, folder, resume=True)
        except InputError:
            if not damage_of(folder):
                raise


def refuse_other_threads(trials: Sequence[Trial], folder: ComparisonFolder) -> None:
    """Check that trials which are there already were trained with as many threads.

    The last bits of a sum depend on them, and a training on the last bits.

    Raises:
        InputError: If they were not; says what would take them as they are.
    """
    found = Counter(_threads_of(trial) for trial in trials if _is_begun(trial))
    if unsaid := found.pop(None, 0):
        say(f"note: {unsaid} trials there do not say with how many threads they were trained")
    wanted = trials[0].threads if trials else None
    others = {number: count for number, count in found.items() if number != wanted}
    if not others:
        return
    usual = max(found, key=lambda number: found[number])
    said = " and ".join(f"{count} with {number}" for number, count in sorted(found.items()))
    alike = f"--threads {usual} goes on with them; or " if len(found) == 1 else ""
    raise InputError(
        f"{folder.path}: holds trials that were trained with another number of threads ({said}), "
        f"and now each would have {wanted}; {alike}choose another --output"
    )


def _is_begun(trial: Trial) -> bool:
    return trial.folder.checkpoint.is_file() or is_finished(trial.folder)


def _threads_of(trial: Trial) -> int | None:
    """Return with how many threads a trial was trained, None where its folder does not say it."""
    try:
        said = read_json(trial.folder.environment).get("threads")
    except QtoolError:
        return None
    return said if isinstance(said, int) else None

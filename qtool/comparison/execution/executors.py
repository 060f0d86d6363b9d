"""Where and when trials are trained: an executor takes them and what trains one, yields outcomes.

To add one, write a callable of the type `Executor`, and have it pass `ExecutorTestCase` of the
tests. A trial that dies, such as for want of memory, is tried once more and then is a failed one:
what a trial reached is in its folder, so that whoever tries it again goes on from there. An error
that every trial would meet, such as data that are missing, ends the comparison.
"""

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import torch

from qtool.comparison.execution.board import Board, Progress
from qtool.comparison.execution.trials import (
    Outcome,
    Train,
    TrainTrial,
    Trial,
    failed_summary,
)
from qtool.console import say, warn
from qtool.reports.words import time_left
from qtool.training.progress import one_of_several

Executor = Callable[[Sequence[Trial], Train], Iterable[Outcome]]
Done = Callable[[Sequence[Outcome]], None]
TRIES = 2


def one_by_one(trials: Sequence[Trial], train: Train) -> Iterator[Outcome]:
    """Train trials in this process, each after the one before it."""
    progress = Progress(trials)
    for number, trial in enumerate(trials, 1):
        place = f"trial {number}/{len(trials)}"
        left = progress.seconds_left()
        say(f"{place}: {trial}" + (f"; about {time_left(left)} left in all" if left else ""))
        progress.begins(trial)

        def among(place: str = place) -> str:
            left = progress.seconds_left()
            return place if left is None else f"{place}, {time_left(left)} in all"

        with one_of_several(among):
            outcome = _tried(trial, train)
        progress.ends(outcome)
        yield outcome


def _tried(trial: Trial, train: Train) -> Outcome:
    """Train a trial in this process, and once more where the memory was not enough."""
    why = ""
    for number in range(1, TRIES + 1):
        try:
            return Outcome(trial, train(trial))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            why = say_died(trial, f"out of memory: {error}", number)
        gc.collect()  # the error, and what it held, are gone
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return Outcome(trial, failed_summary(trial, why))


def finished_first(
    trials: Sequence[Trial], train: Train, seen: Board, waiting: deque[Trial]
) -> Iterator[Outcome]:
    """Yield the outcomes of trials that have nothing left to train, and put the others in line.

    Their folders are read here, so that they cost no other process.

    Args:
        trials: in turn.
        train: trains one of them.
        seen: is told of those that are finished.
        waiting: takes the others.

    Raises:
        InputError: If a trial's folder holds anything else.
    """
    for trial in trials:
        summary = train.finished_before(trial) if isinstance(train, TrainTrial) else None
        if summary is None:
            waiting.append(trial)
            continue
        outcome = Outcome(trial, summary)
        seen.begins(trial)
        seen.ends(outcome)
        yield outcome


def say_died(trial: Trial, why: str, tries: int) -> str:
    """Say that a trial died, and what becomes of it; return what its summary is to say."""
    then = "it is tried once more" if tries < TRIES else "it counts as failed"
    warn(f"{trial}: {why}; {then}")
    return f"died {tries} times, the last time: {why}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory was not enough, of a device or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def run_trials(
    trials: Sequence[Trial],
    train: Train,
    executor: Executor = one_by_one,
    after: Done | None = None,
) -> dict[str, list[Outcome]]:
    """Run every trial, seed by seed, so that arms stay comparable when they are stopped.

    Args:
        trials: in the order of their arms, and of their seeds within an arm.
        train: trains one of them, or returns the summary of one that is done.
        executor: calls it, now or elsewhere.
        after: called with all outcomes so far after each of them.

    Returns:
        The outcomes of each arm, in the order of the trials.
    """
    seeds = dict.fromkeys(trial.seed for trial in trials)
    in_turn = [trial for seed in seeds for trial in trials if trial.seed == seed]
    done: dict[tuple[str, int], Outcome] = {}
    coming = executor(in_turn, train)
    try:
        for outcome in coming:
            done[outcome.trial.arm, outcome.trial.seed] = outcome
            if after is not None:
                after(list(done.values()))
    finally:
        if isinstance(coming, Generator):  # at once: its processes are to end before this one
            coming.close()
    outcomes: dict[str, list[Outcome]] = {}
    for trial in trials:
        outcomes.setdefault(trial.arm, []).append(done[trial.arm, trial.seed])
    return outcomes

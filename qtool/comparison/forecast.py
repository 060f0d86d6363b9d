"""Before a comparison starts: how many trainings, how long they take, and what they could find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean

import torch

from qtool.comparison.execution.plan import Execution
from qtool.comparison.execution.room import is_finished
from qtool.comparison.execution.trials import Outcome, Trial, threads_of
from qtool.comparison.judged import Judging, judge
from qtool.comparison.statistics.power import detectable_effect
from qtool.comparison.statistics.verdicts import points
from qtool.console import say, say_nothing
from qtool.data.loaders import Loaders
from qtool.reports.results import Summary
from qtool.reports.words import time_left
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.built.timing import time_steps

SHORT = 20  # steps: a training of fewer is hardly longer than timing it
# What single seeds differ by where nothing is known: networks of 96 % accuracy whose errors on 8 %
# of the images are chance, and vary over seeds 1.4 times as much as independent ones.
ASSUMED_SHARE, ASSUMED_RATIO = 0.08, 1.4


@dataclass(frozen=True)
class Timed:
    """How long a training takes.

    Attributes:
        seconds: of one training.
        by: what says so.
    """

    seconds: float
    by: str


def say_forecast(
    trials: Sequence[Trial],
    execution: Execution,
    device: torch.device,
    access: Access,
    judging: Judging | None = None,
) -> None:
    """Say how many trainings there are, how long they take and, if judged, what they could find.

    Args:
        trials: of all arms and seeds.
        execution: how they are trained.
        device: that they are trained on.
        access: what the recipe of all trials may reach.
        judging: how arms are judged; None where accuracies are not what is asked.
    """
    own = [replace(trial, threads=execution.threads_of_each) for trial in trials]
    done = [
        Outcome(trial, Summary.read(trial.folder.summary))
        for trial in own
        if is_finished(trial.folder)
    ]
    left, arms = len(own) - len(done), list(dict.fromkeys(trial.arm for trial in own))
    seeds = len(own) // len(arms)
    shown = f"{len(arms)} arms x {seeds} {'seed' if seeds == 1 else 'seeds'}"
    some = f", {len(done)} of them done" if done else ""

    @cache
    def data() -> Loaders:
        recipe = own[0].recipe
        with say_nothing(when=True):
            return build.make_data(recipe, device, access.taken(recipe))

    timed = None
    if done:
        timed = Timed(fmean(each.summary.seconds for each in done), "those")
    elif left:
        timed = time_of(own[0], data, device)
    say(f"{len(own)} trainings, {shown}{some}{_time_left(timed, left, execution)}")
    if judging is not None and left and seeds > 1 and len(arms) > 1:
        say(_what_is_found(done, seeds, arms, data, judging))


def _time_left(timed: Timed | None, left: int, execution: Execution) -> str:
    """Return how long the trainings that are left take, as the end of a sentence."""
    if not left:
        return ""
    if timed is None:
        return "; how long they take is known after the first"
    at_once = 1 if execution.cluster is not None else min(execution.jobs or 1, left)
    rounds = -(-left // at_once)
    return f"; about {time_left(rounds * timed.seconds)} left, by {timed.by}"


def time_of(trial: Trial, read: Callable[[], Loaders], device: torch.device) -> Timed | None:
    """Return how long a trial takes, by a few of its steps; None of a short one.

    None too where a step fails: the trial itself says so.

    Args:
        trial: to be timed.
        read: returns its data, on the device.
        device: that it is trained on.
    """
    recipe = trial.recipe
    epochs = recipe.training.epochs
    try:
        with threads_of(trial), torch.random.fork_rng(devices=[]), say_nothing(when=True):
            data = read()
            steps = len(data.train)
            if steps * epochs < SHORT:
                return None
            built = build.make_network(recipe, data)
            model = build.prepare_network(recipe, built.model, data.first_images)
            build.calibrate_on(model, recipe, data)
            timing = time_steps(model, recipe, data, device, architecture=built.architecture)
    except Exception:  # of a user's estimator it may be any
        return None
    return Timed(timing.total, f"{1000 * timing.step:.0f} ms a step")


def _what_is_found(
    done: Sequence[Outcome],
    seeds: int,
    arms: Sequence[str],
    read: Callable[[], Loaders],
    judging: Judging,
) -> str:
    """Return what difference a comparison finds 4 times in 5, and by what that is known."""
    std, why = _known_std(done, arms), "as those that are done do"
    if std is None:
        images = images_of(read())
        if not images:
            return "what they could find is not known: labels are no classes"
        std = assumed_std(images)
        why = f"as assumed of networks of 96 % on {images:,} images"
    others = len(arms) - 1
    alpha = judging.alpha / others
    effect = detectable_effect(std, seeds, std**2 / ASSUMED_RATIO, alpha)
    among = f", Holm over {others}" if others > 1 else ""
    return (
        f"a difference of {points(effect)} points from {arms[0]} would be found 4 times in 5 "
        f"({seeds} seeds{among}), if single seeds differ by {points(std, 2)} points, {why}"
    )


def assumed_std(images: int) -> float:
    """Return the standard deviation of the difference of one seed, where nothing is known of it.

    A chance that is even between 0 and 1 has p (1 - p) = 1/6 on average, and there are two arms.
    """
    return float((2 * ASSUMED_RATIO * ASSUMED_SHARE / 6 / images) ** 0.5)


def _known_std(done: Sequence[Outcome], arms: Sequence[str]) -> float | None:
    """Return what single seeds differ by, of trials that are done; None where they do not tell."""
    by_arm = {
        arm: {each.trial.seed: each for each in done if each.trial.arm == arm} for arm in arms
    }
    shared = sorted(set.intersection(*(set(own) for own in by_arm.values())))
    if len(shared) < 2:
        return None
    found = judge({arm: [own[seed] for seed in shared] for arm, own in by_arm.items()})
    stds = [item.std for item in found.differences if item.std]
    return fmean(std**2 for std in stds) ** 0.5 if stds else None


def images_of(data: Loaders) -> int:
    """Return how many validation images there are; 0 where labels are no classes."""
    split = data.validation_split
    if split is None or torch.as_tensor(split.labels).is_floating_point():
        return 0
    return len(split)

"""Where a run stands between two steps of an epoch: what its checkpoint holds beside the weights.

A watcher that counts over an epoch says what it has, and takes it back, by `state` and `restore`.
"""

from typing import TypedDict

from torch import Tensor

from qtool.quantizers.layers import trackers_of
from qtool.training.loop import Trainer
from qtool.training.step_watch import Seen
from qtool.training.tally import Counted, Tally
from qtool.training.watcher import WatcherState


class Position(TypedDict):
    """Where a run stands inside an epoch.

    Attributes:
        tally: of the epoch in progress.
        watch: of the losses and gradients of its steps.
        saturated: names of quantizers that were saturated after the last epoch.
        flips: of each layer's codes in the epoch so far, float64 [2]: flips and steps.
        watchers: what those who look on have seen of it, by their class.
    """

    tally: Counted
    watch: Seen
    saturated: list[str]
    flips: dict[str, Tensor]
    watchers: dict[str, WatcherState]


def position_of(trainer: Trainer) -> Position:
    """Return where a trainer stands, between two steps or after the last one."""
    return {
        "tally": trainer.tally.state(),
        "watch": trainer.watch.state(),
        "saturated": sorted(trainer.lost.saturated),
        "flips": {name: each.counted() for name, each in trackers_of(trainer.model).items()},
        "watchers": {type(each).__name__: each.state() for each in trainer.watchers},
    }


def go_to(trainer: Trainer, position: Position) -> None:
    """Let a trainer stand where another one stood; other contents raise as Python does.

    Who looks on takes back what it had when it joins.

    Raises:
        ValueError: If the position is of an epoch of fewer steps, or a number is not finite.
    """
    trainer.tally = Tally.of(position["tally"], trainer.device)
    if trainer.tally.steps > len(trainer.train):
        raise ValueError(f"{trainer.tally.steps} steps of an epoch of {len(trainer.train)}")
    trainer.watch.restore(position["watch"])
    trainer.lost.saturated = set(map(str, position["saturated"]))
    for name, tracker in trackers_of(trainer.model).items():
        tracker.count_from(position["flips"][name])
    trainer.kept = dict(position["watchers"])

"""What a block knows of its calls, and whether those that it made are a path that was recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qtool.limits import OTHER_PATH

Pair = tuple[str, str]  # leaf, "" for the block's own code, and function
# what torch.compile tells no mode of; modules that call them say so themselves
UNSEEN = ("hardswish", "hardsigmoid")


@dataclass(frozen=True)
class BlockCalls:
    """What a block knows of its calls.

    Attributes:
        block: its name in the model.
        type: the name of its class.
        functions: those at whose calls something stands; no other is counted.
        keys: leaf and function -> call -> name among the block's `sites`.
        ways: what one call of the block may count of these functions, in one entry or more.
        dropouts: leaves of which nothing counts but dropout itself.
        inputs: which tensor that the model is given -> name among the sites; of the root alone.
        arguments: names of what its forward takes, in order, where there are sites of inputs.
    """

    block: str
    type: str = ""
    functions: frozenset[str] = frozenset()
    keys: Mapping[Pair, Mapping[int, str]] = field(default_factory=dict)
    ways: tuple[Mapping[Pair, int], ...] = ()
    dropouts: frozenset[str] = frozenset()
    inputs: Mapping[int, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def check_path(calls: BlockCalls, counts: Mapping[Pair, int], *, training: bool) -> None:
    """Refuse a call of a block that took another path than those that were recorded.

    A block that counted nothing was skipped; a leaf that counted nothing was, too, and so may the
    block's own code have been in training.
    """
    if not counts:
        return
    for way in calls.ways:
        if _is_way(counts, way, skips=training):
            return
    way = calls.ways[0] if calls.ways else {}
    for pair in {**way, **counts}:
        if counts.get(pair, 0) != way.get(pair, 0):
            leaf, function = pair
            raise OTHER_PATH.error(
                block=calls.block or calls.type,
                function=f"{function} of {leaf}" if leaf else function,
                times=counts.get(pair, 0),
                recorded=way.get(pair, 0),
            )


def _is_way(counts: Mapping[Pair, int], way: Mapping[Pair, int], *, skips: bool) -> bool:
    same = all(way.get(pair, 0) == times for pair, times in counts.items())
    unseen = UNSEEN if torch.compiler.is_compiling() else ()
    return same and all(
        pair in counts or (skips and pair[1] not in unseen) or pair[0] for pair in way
    )

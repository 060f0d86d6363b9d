"""Which processes, and which share of a batch, a pass through a model is of.

A quantizer's range, and what a scale learns by, are of the whole batch, of which a pass may see a
part: one process's rows, and of those one share of several whose gradients are added up. The loop
says so by `joined`; within torch's DistributedDataParallel its own group is known without that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from qtool.world.group import Group
from qtool.world.world import ALONE, World


class Share(NamedTuple):
    """Which part of a batch a pass sees, in numbers that copies and files may hold.

    Attributes:
        batch, rows: of the rows of the batch and those of the pass, the ratio.
        passes: of one process in a step.
        processes: that make passes at the same time.
    """

    batch: int = 1
    rows: int = 1
    passes: int = 1
    processes: int = 1


EVERYTHING = Share()


@dataclass(frozen=True)
class Pass:
    """What a pass is a part of.

    Attributes:
        world: processes that make passes of the same step at the same time.
        share: which part of the batch it sees.
    """

    world: World = ALONE
    share: Share = EVERYTHING


WHOLE = Pass()
_joined: list[Pass] = []


@contextmanager
def joined(one: Pass) -> Iterator[None]:
    """Let passes inside be part of something."""
    _joined.append(one)
    try:
        yield
    finally:
        _joined.pop()


def this_pass() -> Pass:
    """Return what the pass that runs is a part of."""
    if _joined:
        return _joined[-1]
    if not (dist.is_available() and dist.is_initialized()):
        return WHOLE
    # private, but what torch's own compiler asks; without it each process goes by itself
    active = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return WHOLE if active is None else _pass_of(active.process_group)


def _pass_of(group: dist.ProcessGroup) -> Pass:
    size = dist.get_world_size(group)
    return Pass(Group(group), Share(size, processes=size)) if size > 1 else WHOLE

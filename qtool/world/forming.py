"""How processes that torchrun has started find each other, and part again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from qtool.console import say_nothing
from qtool.errors import InputError
from qtool.stopping import held_back
from qtool.world.group import Group, LostProcessError
from qtool.world.launched import launched
from qtool.world.world import ALONE, World


def own_device(wanted: str) -> str:
    """Return which device `--device` names for this process: on CUDA, that of its number.

    Raises:
        InputError: If torchrun started more processes than there are CUDA devices, or all are to
            share one.
    """
    here = launched()
    if here.size == 1 or wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return wanted
    if wanted not in ("auto", "cuda"):
        raise InputError(
            f"--device {wanted}: torchrun started {here.local_size} processes here, each of which "
            f"takes a device of its own; choose auto, cpu or cuda"
        )
    have = torch.cuda.device_count()
    if have < here.local_size:
        raise InputError(
            f"--device {wanted}: this machine has {have} CUDA devices for {here.local_size} "
            f"processes; lower --nproc-per-node, or use cpu"
        )
    return f"cuda:{here.local_rank}"


@contextmanager
def formed(wanted: str) -> Iterator[World]:
    """Return the processes that torchrun has started, which wait here for each other.

    All but the first say nothing from then on. One process by itself is a world of its own.

    Args:
        wanted: what `--device` names.

    Raises:
        LostProcessError: If one of them has ended, in place of what torch says of connections.
    """
    if dist.is_available() and dist.is_initialized():  # by who calls qtool from Python
        with held_back():
            yield Group() if dist.get_world_size() > 1 else ALONE
        return
    if launched().size == 1:
        yield ALONE
        return
    on_cuda = wanted != "cpu" and torch.cuda.is_available()
    world = _found("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    # signals stop all processes at the same step, not each where it is
    with say_nothing(when=not world.first), held_back():
        try:
            yield world
        except Exception as error:
            if (meant := world.meant_by(error)) is not error:
                raise meant from error
            world.leave_word(error)
            raise
    # not after an error: who has lost another process would wait for it here
    dist.destroy_process_group()


def _found(backend: str) -> Group:
    """Return the processes once all of them are there.

    Raises:
        LostProcessError: If some do not come.
    """
    here = launched()
    try:
        store, rank, size = next(rendezvous("env://"))
        # torchrun's store outlives a start, and holds the addresses of processes that are gone
        own = PrefixStore(f"qtool_{here.restarts}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        failure = LostProcessError(f"{here.size} processes did not find each other: {why}", 1)
        failure.told = not here.first
        raise failure from error
    return Group(store=own)

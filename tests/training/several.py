"""Several processes that train one network, for tests: forked from one that has torch loaded."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qtool.world.group import Group
from qtool.world.world import ALONE, World


def in_processes(
    task: Callable[..., Any],
    size: int,
    folder: Path,
    *args: object,
    threads: int = 1,
    formed: bool = True,
) -> list[Any]:
    """Return what `task(world, *args)` returns in each of `size` processes, by rank.

    Those that are not formed have the environment of torchrun, and form a group themselves.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, task.__module__])
    queue = context.SimpleQueue()
    store = folder / f"store_{len(list(folder.iterdir()))}" if formed else free_port()
    around = (queue, store, threads, task, args)
    started = [context.Process(target=_run, args=(rank, size, *around)) for rank in range(size)]
    for process in started:
        process.start()
    found = dict(pickle.loads(queue.get()) for _ in started)
    for process in started:
        process.join()
    failed = [value for value in found.values() if isinstance(value, Exception)]
    if failed:
        raise failed[0]
    return [found[rank] for rank in range(size)]


def _run(
    rank: int,
    size: int,
    queue: Any,
    store: Path | int,
    threads: int,
    task: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    torch.set_num_threads(threads)
    world: World = ALONE
    try:
        if isinstance(store, int):
            os.environ |= launched_as(rank, size, store)
        elif size > 1:
            method = f"file://{store}"
            dist.init_process_group("gloo", init_method=method, rank=rank, world_size=size)
            world = Group()
        queue.put(pickle.dumps((rank, task(world, *args))))  # tensors by value
    except Exception as error:
        why = RuntimeError(f"process {rank}: {type(error).__name__}: {error}")
        queue.put(pickle.dumps((rank, why)))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launched_as(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun writes into the environment of a process that it starts."""
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    said = {key: str(number) for key, number in numbers.items()}
    return said | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

"""Trials on a Ray cluster, or a local one: the same tasks as other processes of this machine take.

Machines of a cluster have qtool installed, and see the comparison's folder under the same path. Ray
itself tries nothing again: a trial whose worker died is sent once more, as everywhere, and goes on
from its checkpoint.
"""

import importlib
import os
import pickle
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from qtool.comparison.execution.board import Board, board
from qtool.comparison.execution.executors import finished_first
from qtool.comparison.execution.slots import PATIENCE, outcome_of
from qtool.comparison.execution.tasks import Ended, Reply, Task
from qtool.comparison.execution.trials import Outcome, Train, TrainTrial, Trial
from qtool.errors import InputError
from qtool.stopping import Stopped, heeding_signals, held_back

LOCAL = "local"
INSTALL = 'pip install "qtool[cluster]"'
HEEDED = (signal.SIGINT, signal.SIGTERM)
REACHED = 10  # seconds until a machine must have answered; Ray itself tries for minutes
PAUSE = 0.5  # seconds between two looks at signals


@dataclass(frozen=True)
class Cluster:
    """Trains as many trials at once as the cluster has processors for.

    Attributes:
        address: of the cluster; LOCAL for one on this machine.
        folder: of the comparison, on a path that all machines share.
        jobs: at most so many; None for no limit.
    """

    address: str
    folder: Path
    jobs: int | None = None

    def __call__(self, trials: Sequence[Trial], train: Train) -> Iterator[Outcome]:
        """Yield outcomes as they come.

        Raises:
            InputError: If Ray is not installed, or there is no such cluster.
            QtoolError: As a trial's process told of it: every trial would meet it.
        """
        waiting = deque[Trial]()
        with board(trials) as seen:
            yield from finished_first(trials, train, seen, waiting)
            if waiting:
                with self._connected(waiting[0].threads or 1) as ray:
                    yield from self._trained(ray, waiting, train, seen)

    def _trained(
        self, ray: ModuleType, waiting: deque[Trial], train: Train, seen: Board
    ) -> Iterator[Outcome]:
        """Yield the outcomes of trials that wait, as they come."""
        tries, threads = Counter[str](), waiting[0].threads or 1
        processors = int(ray.cluster_resources().get("CPU", 1)) // threads
        at_once = max(1, min(self.jobs or processors, processors))
        gpus = isinstance(train, TrainTrial) and train.device.type == "cuda"
        remote = ray.remote(num_cpus=threads, num_gpus=int(gpus), max_retries=0)(trained)
        running: dict[object, Trial] = {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    trial = waiting.popleft()
                    task = Task.of(trial, train).sent()
                    running[remote.remote(task, str(Path.cwd()), str(self.folder))] = trial
                    seen.begins(trial)
                with held_back():  # Ray would make a mere KeyboardInterrupt of it
                    found = ray.wait(list(running), timeout=PAUSE)[0]
                for done in found:
                    trial = running.pop(done)
                    outcome = outcome_of(trial, _ended(ray, done), tries, waiting)
                    if outcome is not None:
                        seen.ends(outcome)
                        yield outcome
        finally:
            for each in running:  # they write their checkpoints
                ray.cancel(each, force=False)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)

    @contextmanager
    def _connected(self, threads: int) -> Generator[ModuleType]:
        """Lend Ray, connected.

        Raises:
            InputError: If it is not installed, or there is no such cluster.
        """
        try:
            ray = importlib.import_module("ray")
        except ImportError as error:
            raise InputError(f"--cluster: Ray is not installed; {INSTALL}") from error
        _refuse_unreachable(self.address)
        quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": True}
        found = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        handlers = {number: signal.getsignal(number) for number in HEEDED}
        try:
            if self.address == LOCAL:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
                count = None if self.jobs is None else self.jobs * threads
                paths = {"env_vars": {"PYTHONPATH": found}}
                ray.init(LOCAL, num_cpus=count, include_dashboard=False, runtime_env=paths, **quiet)
            else:
                ray.init(self.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise InputError(f"--cluster {self.address}: no such cluster: {why}") from error
        for number, handler in handlers.items():  # Ray has put its own in their place
            signal.signal(number, handler)
        try:
            yield ray
        finally:
            ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Check that a machine answers, where an address names one as HOST:PORT.

    Raises:
        InputError: If none does.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), REACHED).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"--cluster {address}: no such cluster: {error}") from error


def trained(sent: bytes, place: str, folder: str) -> Reply:
    """Train a trial in a worker of the cluster.

    Args:
        sent: the task.
        place: working directory of the process that sent it.
        folder: of the comparison.
    """
    if not Path(folder).is_dir() or not Path(place).is_dir():
        why = "is not there on this machine of the cluster; choose a folder that all machines share"
        return {"error": "InputError", "message": f"{folder}: {why}"}
    os.chdir(place)
    task: Task = pickle.loads(sent)
    try:
        with _stopped_by_cancelling():
            return task.done()
    except Stopped:
        return {}


@contextmanager
def _stopped_by_cancelling() -> Generator[None]:
    """Take what Ray sends to cancel a task, a SIGINT, as SIGTERM, which leaves a checkpoint."""
    with heeding_signals():
        stop = signal.getsignal(signal.SIGTERM)

        def cancelled(number: int, frame: FrameType | None) -> None:
            if callable(stop):
                stop(signal.SIGTERM, frame)

        before = signal.signal(signal.SIGINT, cancelled)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _ended(ray: ModuleType, done: object) -> Ended:
    """Return how a task ended, whose worker may have died."""
    try:
        reply: Reply = ray.get(done)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        return Ended(why=f"its worker died: {lines[-1] if lines else type(error).__name__}")
    return Ended.of(reply) if reply else Ended(why="its worker was asked to stop")

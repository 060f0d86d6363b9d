"""Processes of workers, which may begin to load before this process has loaded anything itself.

A command knows how many it takes before it loads torch, which takes seconds, here as there: those
that are started ahead are taken when trials need a worker. One that nobody takes ends with this
process at the latest, as its standard input does then.
"""

import os
import subprocess
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Environment = dict[str, str]
Process = subprocess.Popen[bytes]

_ahead: list[tuple[Environment, Process]] = []


def usual_folder(recipe: Path, kind: str) -> Path:
    """Return where a comparison of this kind goes of which nobody says where."""
    return Path("runs") / f"{recipe.stem}-{kind}"


def load_ahead(jobs: int | None, threads: int | None, folder: Path) -> None:
    """Start the workers that a comparison will take, if it is begun anew.

    Args:
        jobs: trials at once; None: they are trained in this process.
        threads: of each trial; None: one where there are several jobs, else as many as torch says,
            which is not known yet.
        folder: of the comparison; where it is there, trials may be done.
    """
    if jobs is None or folder.exists() or (threads is None and jobs == 1):
        return
    if jobs < 1 or (threads is not None and threads < 1):
        return  # which is refused
    environment, count = _environment(threads or 1), min(jobs, os.cpu_count() or 1)
    _ahead.extend((environment, _started(environment)) for _ in range(count))


def take(threads: int | None) -> Process:
    """Return a worker that finds the modules that this process finds: one of those, or a new one.

    Args:
        threads: of each trial; None: as many as torch says.
    """
    wanted = _environment(threads)
    while _ahead:
        environment, process = _ahead.pop(0)
        if environment == wanted and process.poll() is None:
            return process
        _end(process)
    return _started(wanted)


def end_ahead() -> None:
    """End those that nobody takes."""
    while _ahead:
        _end(_ahead.pop()[1])


def _environment(threads: int | None) -> Environment:
    found = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    environment = {**os.environ, "PYTHONPATH": found}
    if threads is not None:  # before torch is loaded, so that no more are ever started
        environment |= dict.fromkeys(THREADS, str(threads))
    return environment


def _started(environment: Environment) -> Process:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "qtool.comparison.execution.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        process_group=0,
    )


def _end(process: Process) -> None:
    """End a worker that has not begun anything."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()

"""One writer in a folder at a time.

The system itself keeps the lock, on an open file, and drops it when its process ends, however that
is: what a killed process leaves in the folder locks nobody out. Who writes stands in a file beside
the lock, for the message to others.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from qtool.console import say
from qtool.errors import InputError, QtoolError, WriteError
from qtool.files.held import Held, hold, let_go, refuse_if_gone
from qtool.files.json_data import parse_json
from qtool.files.scratch import sweep
from qtool.files.whole import make_folder

LOCK, WRITER = ".lock", ".writer.json"
OF_LOCKS = (LOCK, WRITER)
PATIENCE = 0.5  # seconds: another process may just be letting go
MOST = 4096  # bytes that are read of what another process says of itself


@dataclass
class _Mine:
    """A folder that this process has locked, and how many blocks in it are within."""

    held: Held
    thread: int
    depth: int


_mine: dict[Path, _Mine] = {}


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes in a folder inside; what killed ones left there is swept.

    A folder that is not there is made, and removed where nothing was put into it. Within a process
    blocks may lie in one another.

    Raises:
        InputError: If another process writes there; says which, where and since when.
        WriteError: If there can be no lock in it, such as when the disk is full.
    """
    place = Path(os.path.realpath(folder))
    mine = _mine.get(place)
    if mine is not None and mine.held.process == os.getpid() and mine.held.is_there():
        if mine.thread != threading.get_ident():
            raise InputError(f"{folder}: another thread of this process writes there")
        mine.depth += 1
        try:
            yield
        finally:
            mine.depth -= 1
        return
    with _locked(folder, place):
        yield


@contextmanager
def _locked(folder: Path, place: Path) -> Iterator[None]:
    made = [each for each in (place, *place.parents) if not each.exists()]
    lock = FileLock(place / LOCK)
    try:
        refuse_if_gone(place / LOCK)
        make_folder(place)
        lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 10)
    except Timeout:
        who = _writer(place) or "another process"
        raise InputError(
            f"{folder}: {who} writes there; wait for it to end, or choose another folder"
        ) from None
    except QtoolError:
        _remove_empty(made)
        raise
    except OSError as error:
        _remove_empty(made)
        raise WriteError(f"{folder}: cannot be locked: {error.strerror or error}") from error
    try:
        gone = _writer(place)
        if gone is not None:
            say(f"note: {folder}: {gone} wrote there, and is gone")
        with suppress(OSError):  # a full disk still takes the lock
            _tell_writer(place)
        for each in (place, *(child for child in place.iterdir() if child.is_dir())):
            sweep(each)
        mine = _mine[place] = _Mine(hold(place), threading.get_ident(), 1)
        try:
            yield
        finally:
            del _mine[place]
            let_go(mine.held)
    finally:
        for name in (WRITER, LOCK):  # while it is held: who locks a removed file notices
            with suppress(OSError):
                (place / name).unlink()
        with suppress(OSError):  # the folder may be gone
            lock.release()
        _remove_empty(made)


def is_written(folder: Path) -> bool:
    """Tell whether a process writes in a folder; where its lock cannot be tried, by what it says.

    Nothing is made or changed, and a process that comes meanwhile waits for a moment.
    """
    place = Path(os.path.realpath(folder))
    if not (place / LOCK).is_file():
        return False
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return _writer(place) is not None
    lock.release()
    return False


def _remove_empty(made: list[Path]) -> None:
    """Remove folders that were made for nothing, the innermost first."""
    for each in made:
        try:
            each.rmdir()
        except OSError:
            return


def _tell_writer(place: Path) -> None:
    """Write down who writes here."""
    path = place / WRITER
    said = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # and so through no link
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        json.dump(said, opened)


def _writer(place: Path) -> str | None:
    """Return who says that it writes in a folder, None where nobody does."""
    try:
        with (place / WRITER).open("rb") as file:
            said = parse_json(file.read(MOST).decode())
        if not isinstance(said, dict):
            return None
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(said["since"])))
        return f"process {int(said['process'])} on {said['host']}, since {since},"
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None

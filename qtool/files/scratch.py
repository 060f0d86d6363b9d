"""Folders for what is not done yet: private, of a name that nobody can guess, and swept if left.

A folder that only its maker may enter, made in one call that fails where the name is taken, cannot
be reached through a link that somebody else put there; the files in it get the mode that the umask
says. Its maker keeps it locked: what a killed process left is told from what is in use by that.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qtool.errors import WriteError

try:
    import fcntl
except ImportError:  # on Windows, where nothing is swept
    fcntl = None

PREFIX = "qtool-"  # of folders that lie where the system wants such
ENDING = ".tmp"
LONGEST = 100  # characters of a file's name that its folder is called after
_NAME = re.compile(rf"\..+\.\w{{8}}{re.escape(ENDING)}")  # as `mkdtemp` makes them
_OLDER = re.compile(r"\..+\.\d+\.tmp|\..+\.unproven")  # before qtool 0.2


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Lend a folder beside a file, on the same disk, and remove it; the file's folder is there.

    Raises:
        OSError: If none can be made.
    """
    with _lent(path.parent, f".{path.name[:LONGEST]}.") as folder:
        yield folder


@contextmanager
def scratch() -> Iterator[Path]:
    """Lend a folder where the system wants temporary ones, and remove it.

    What killed processes left there is removed, too.

    Raises:
        WriteError: If none can be made.
    """
    with ExitStack() as lent:
        try:
            where = Path(tempfile.gettempdir())
            for left in where.glob(f"{PREFIX}*{ENDING}"):
                _remove_unless_used(left)
            folder = lent.enter_context(_lent(where, PREFIX))
        except OSError as error:
            raise WriteError(
                f"no temporary folder can be made: {error.strerror or error}; the environment "
                f"variable TMPDIR names where"
            ) from error
        yield folder


def sweep_beside(path: Path) -> None:
    """Remove what a killed process left of its attempts to write a file."""
    start = f".{path.name[:LONGEST]}."
    for left in _children(path.parent):
        if left.name.startswith(start) and _NAME.fullmatch(left.name):
            _remove_unless_used(left)


def sweep(folder: Path) -> None:
    """Remove whatever killed processes left in a folder that nobody else writes in."""
    for left in _children(folder):
        if _NAME.fullmatch(left.name):
            _remove_unless_used(left)
        elif _OLDER.fullmatch(left.name):
            _remove(left)


def is_scratch(path: Path) -> bool:
    """Tell whether a file or folder is what a killed process may have left."""
    return bool(_NAME.fullmatch(path.name) or _OLDER.fullmatch(path.name))


@contextmanager
def _lent(where: Path, prefix: str) -> Iterator[Path]:
    folder, lock = _made(where, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _made(where: Path, prefix: str) -> tuple[Path, int | None]:
    """Make a folder and lock it, anew if somebody sweeps it away in between."""
    while True:
        folder = Path(tempfile.mkdtemp(ENDING, prefix, where))
        if fcntl is None:
            return folder, None
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if not _locked(lock) or folder.exists():
            return folder, lock
        os.close(lock)


def _locked(opened: int) -> bool:
    """Lock an open folder, if nobody has; a file system without locks has none to sweep by."""
    assert fcntl is not None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_unless_used(folder: Path) -> None:
    """Remove a folder that no process has locked."""
    if fcntl is None:
        return
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:  # another user's, no folder, or swept by somebody else
        return
    try:
        if _locked(opened):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(opened)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []

"""Folders that this process writes in for a while: whether they are still what they were.

A folder that was removed meanwhile must not be made again by the next file that is written into it.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

GONE = "its folder was removed, or another one put in its place, while qtool wrote there"


@dataclass(frozen=True)
class Held:
    """A folder, as it was when it was taken.

    Attributes:
        device, number: that tell it from any other that is put in its place.
        process: that took it; a child that was forked meanwhile has not.
    """

    folder: Path
    device: int
    number: int
    process: int

    @classmethod
    def of(cls, folder: Path) -> "Held":
        """Return a folder that is there, as it is now."""
        known = folder.stat()
        return cls(folder, known.st_dev, known.st_ino, os.getpid())

    def is_there(self) -> bool:
        """Tell whether it is still the same folder."""
        try:
            known = self.folder.stat()
        except OSError:
            return False
        return (known.st_dev, known.st_ino) == (self.device, self.number)


_held: list[Held] = []


def hold(folder: Path) -> Held:
    """Note that this process writes in a folder, which is there, from now on."""
    held = Held.of(folder.absolute())
    _held.append(held)
    return held


def let_go(held: Held) -> None:
    """Note that it no longer does."""
    _held.remove(held)


def refuse_if_gone(path: Path) -> None:
    """Check, before a file is written, that its folder was not removed while it was in use.

    Raises:
        FileNotFoundError: If it was.
    """
    where = path.absolute()
    for held in _held:
        if held.folder in where.parents and not held.is_there():
            raise FileNotFoundError(errno.ENOENT, GONE)

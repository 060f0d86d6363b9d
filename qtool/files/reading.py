"""Files that others may have damaged: errors name the file and say what is wrong with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from qtool.errors import InputError

WRONG_CONTENTS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(RuntimeError, TypeError, ValueError),
)
"""What contents that nobody expects make Python, NumPy and torch raise."""


@contextmanager
def intact(path: Path, what: str) -> Iterator[None]:
    """Turn the errors that wrong contents of a file cause into one that names the file.

    Args:
        path: of the file whose contents are used inside.
        what: goes wrong, such as "its metadata is damaged".

    Raises:
        InputError: In place of what Python or torch say of the contents.
    """
    try:
        yield
    except WRONG_CONTENTS as error:
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        else:
            lines = [line.strip() for line in str(error).splitlines()[:2]]
            reason = " ".join(lines) or type(error).__name__
        raise InputError(f"{path}: {what}: {reason}") from error


def read_bounded(path: Path, most: int) -> bytes:
    """Return a file's bytes; no more than are allowed are ever read.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it has more than `most` bytes.
    """
    with path.open("rb") as file:
        kind = os.fstat(file.fileno())
        plain = S_ISREG(kind.st_mode)
        if not plain or kind.st_size <= most:
            held = file.read((kind.st_size if plain else most) + 1)  # asks for as much memory
            if len(held) <= most:
                return held
    raise ValueError(f"more than {most:,} bytes, which are the most that is read")

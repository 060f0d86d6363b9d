"""Whole files or nothing: how a file is written, and whether it can be."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then put the file in place in one move.

    A kill at any moment leaves the old file or the new one, never half of one.

    Raises:
        InputError: If the file cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def refuse_unless_makeable(folder: Path) -> None:
    """Check that a folder is there or can be made, without making it.

    Raises:
        InputError: If a file is in its way, its name is too long, or its parent takes no files.
    """
    there = folder
    try:
        while not there.exists():
            there = there.parent
    except OSError as error:
        raise InputError(f"{folder}: not the name of a folder: {error.strerror}") from error
    if not there.is_dir():
        raise InputError(f"{folder}: {there} is a file; give the name of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: nothing may be written into {there}; choose another folder")


def refuse_unless_writable(path: Path, meant: str) -> None:
    """Check that a file can be written at `path`, before any work is done for it.

    Raises:
        InputError: If it is a folder, or nothing may be written there; says what is `meant`.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: a folder; {meant}")
    except OSError as error:
        raise InputError(f"{path}: not the name of a file: {error.strerror}") from error
    refuse_unless_makeable(path.parent)


def data_beside(path: Path) -> Path:
    """Return the name of the file that holds the tensors of an ONNX file too large for one."""
    return path.with_name(f"{path.name}.data")


@contextmanager
def unproven(path: Path) -> Iterator[Path]:
    """Lend a name in a folder beside `path` for a file that must prove itself before it is there.

    It goes there where the block ends without an error, with the tensors beside it if there are
    any, and is removed where it does not. It keeps its name, by which it finds those.
    """
    folder = path.with_name(f".{path.name}.unproven")
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    folder.mkdir(parents=True)
    trial = folder / path.name
    try:
        yield trial
        if data_beside(trial).exists():
            data_beside(trial).replace(data_beside(path))
        trial.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write a JSON file in one move."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON objects in one move, each on a line."""
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

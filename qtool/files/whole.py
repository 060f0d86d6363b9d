"""Whole files or nothing: how a file is written, and whether it can be."""

import errno
import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from qtool.errors import InputError, QtoolError, WriteError
from qtool.files.held import refuse_if_gone
from qtool.files.scratch import scratch_beside, sweep_beside
from qtool.stopping import held_back

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
OF_THE_DISK = (*NO_ROOM, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
PROBE = bytes(2**20)  # what libraries write at once may leave less than this free


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a name in a private folder beside `path`, then put the file in place.

    That is one move: a kill at any moment, of the process or of the machine, leaves the old file or
    the new one, never half of one. The file's mode is what the umask says.

    Raises:
        WriteError: If the file cannot be written there, such as when the disk is full.
    """
    try:
        refuse_if_gone(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path) as folder:
            temporary = folder / path.name
            with _no_room_said(path, folder):
                write(temporary)
            put_in_place(temporary, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error


def put_in_place(made: Path, path: Path) -> None:
    """Move a file of the same disk to its place, once it lies on the disk.

    Raises:
        OSError: If it cannot.
    """
    with made.open("r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())
    refuse_if_gone(path)
    made.replace(path)
    with suppress(OSError):  # not every system has this for folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the machine could stop, and forget the move
        finally:
            os.close(folder)


@contextmanager
def _no_room_said(path: Path, folder: Path) -> Iterator[None]:
    """Tell that a disk is full where a library that writes into `folder` fails and does not say so.

    Raises:
        WriteError: In place of whatever the library raised.
    """
    try:
        yield
    except (OSError, QtoolError) as error:
        _let_go_of_files(error)
        raise
    except Exception as error:  # torch and safetensors have errors of their own
        _let_go_of_files(error)
        why = _why_nothing_more_fits(folder)
        if why is None:
            raise
        raise WriteError(f"{path}: cannot be written: {why}") from error


def _let_go_of_files(error: BaseException) -> None:
    """Drop what the functions that failed had open, which an error keeps as long as it is there.

    A file that is removed while it is open takes its room on the disk until it is closed, and the
    next one to be written, such as the summary that tells of the error, may need that.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _why_nothing_more_fits(folder: Path) -> str | None:
    """Return why a folder takes no more data, or None where it does."""
    try:
        with (folder / "probe").open("wb") as file:
            file.write(PROBE)
    except OSError as error:
        return error.strerror or str(error)
    return None


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there yet.

    Raises:
        InputError: If there can be none of that name, as in a file system that makes none.
        WriteError: If the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{folder}: cannot be made: {error.strerror or error}"
        if error.errno in NO_ROOM:
            raise WriteError(why) from error
        raise InputError(f"{why}; choose another folder") from error


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

    What killed processes left of attempts to write it is removed.

    Raises:
        InputError: If it is a folder, or nothing may be written there; says what is `meant`.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: a folder; {meant}")
    except OSError as error:
        raise InputError(f"{path}: not the name of a file: {error.strerror}") from error
    refuse_unless_makeable(path.parent)
    sweep_beside(path)


def data_beside(path: Path) -> Path:
    """Return the name of the file that holds the tensors of an ONNX file too large for one."""
    return path.with_name(f"{path.name}.data")


@contextmanager
def unproven(path: Path) -> Iterator[Path]:
    """Lend a name in a folder beside `path` for a file that must prove itself before it is there.

    It goes there where the block ends without an error, with the tensors beside it if there are
    any, and is removed where it does not. It keeps its name, by which it finds those.

    Raises:
        WriteError: If the disk is full, or nothing may be written there.
    """
    try:
        refuse_if_gone(path)
        make_folder(path.parent)
        with scratch_beside(path) as folder:
            trial = folder / path.name
            with _no_room_said(path, folder):
                yield trial
            with held_back():  # a file and its tensors go together
                if data_beside(trial).exists():
                    put_in_place(data_beside(trial), data_beside(path))
                put_in_place(trial, path)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write a JSON file in one move."""
    write_text(path, _as_text(data))


@contextmanager
def json_after(path: Path, data: Mapping[str, object]) -> Iterator[None]:
    """Write a JSON file, which takes its place after what the block puts into its own.

    So there is room for it before: a file and the report on it are both there, or both are not.

    Raises:
        WriteError: If it cannot be written there.
    """
    with unproven(path) as trial:
        trial.write_text(_as_text(data), encoding="utf-8")
        yield


def _as_text(data: Mapping[str, object]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def write_json_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON objects in one move, each on a line."""
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

"""A file is written whole or not at all, whoever else writes it and whenever the machine stops."""

import errno
import os
import stat
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest

from qtool.errors import InputError, WriteError
from qtool.files import whole
from qtool.files.whole import make_folder, unproven, write_atomically, write_text


def test_what_takes_the_place_of_a_file_lies_on_the_disk_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = tmp_path / "a.txt", "every byte of it"
    path.write_text("old")
    synced: list[tuple[int, int, str]] = []

    def sync(file: int) -> None:
        known = os.fstat(file)
        size = -1 if stat.S_ISDIR(known.st_mode) else known.st_size
        synced.append((known.st_ino, size, path.read_text()))

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, text)
    assert path.read_text() == text
    before = (path.stat().st_ino, len(text), "old")  # all of it, before the move
    assert synced == [before, (tmp_path.stat().st_ino, -1, text)]  # and then that it was moved


def test_two_processes_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from qtool.files.whole import write_text\n"
        "write_text(Path(sys.argv[1]), 'the other one')\n"
    )

    def write(temporary: Path) -> None:
        temporary.write_text("one half, ")
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
        assert path.read_text() == "the other one"
        with temporary.open("a") as file:
            file.write("and the other half")

    write_atomically(path, write)
    assert path.read_text() == "one half, and the other half"
    assert [child.name for child in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_goes_through_no_link_and_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("mine")
    path.symlink_to(victim)
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700  # nobody else gets in
        temporary.write_text("new")

    before = os.umask(0o027)
    try:
        write_atomically(path, write)
        write_atomically(path, write)
    finally:
        os.umask(before)
    assert victim.read_text() == "mine"
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert seen[0].parent != seen[1].parent  # no name that could be guessed


def full(kind: str, path: Path) -> None:
    """Write half of a file, and fail as libraries do where the disk is full."""
    path.write_bytes(b"half")
    raise (
        OSError(errno.ENOSPC, "No space left on device")
        if kind == "system"
        else RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 128 vs 22")
    )


@pytest.mark.parametrize("kind", ["system", "library"])
def test_a_full_disk_is_one_message_and_leaves_the_old_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    path.write_text("old")
    if kind == "library":
        monkeypatch.setattr(whole, "_why_nothing_more_fits", lambda folder: "No space left")
    with pytest.raises(WriteError, match=rf"^{path}: cannot be written: No space left"):
        write_atomically(path, partial(full, kind))
    with pytest.raises(WriteError, match=rf"^{path}: cannot be written: No space left"):
        fail_to_prove(kind, path)
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.pt"]


def fail_to_prove(kind: str, path: Path) -> None:
    with unproven(path) as trial:
        full(kind, trial)


@pytest.mark.parametrize("kind", ["system", "library"])
def test_an_error_keeps_no_file_open_whose_room_the_next_one_needs(
    kind: str, tmp_path: Path
) -> None:
    writers: list[weakref.ref[Writer]] = []

    def write(path: Path) -> None:
        writer = Writer()
        writers.append(weakref.ref(writer))
        full(kind, path)

    with pytest.raises((WriteError, RuntimeError)) as failed:
        write_atomically(tmp_path / "a.pt", write)
    assert failed.traceback  # which had the writer
    assert [writer() for writer in writers] == [None]


class Writer:
    """Has a file open as long as anybody holds it, as torch's does."""


def test_a_file_is_flushed_by_a_handle_that_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows flushes no other; a folder it does not open at all."""
    fcntl = pytest.importorskip("fcntl")
    writable = []

    def flush(handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            access = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
            writable.append(access in (os.O_WRONLY, os.O_RDWR))

    monkeypatch.setattr(os, "fsync", flush)
    write_text(tmp_path / "a.txt", "a")

    assert writable == [True]


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [(errno.ENOENT, InputError, "; choose another folder"), (errno.ENOSPC, WriteError, "")],
)
def test_a_folder_that_cannot_be_made_is_one_message(
    number: int, kind: type[Exception], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems, such as /proc, seem to be writable and make no folders."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fails)
    folder = tmp_path / "new"
    said = f"{folder}: cannot be made: {os.strerror(number)}{advice}"
    with pytest.raises(kind) as error, unproven(folder / "m.onnx"):
        pass
    assert str(error.value) == said
    with pytest.raises(WriteError, match=r"a\.txt: cannot be written"):
        write_text(folder / "a.txt", "text")
    with pytest.raises(kind):
        make_folder(folder)

"""A file is written whole or not at all, whoever else writes it and whenever the machine stops."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qtool.files.whole import write_atomically, write_text


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

"""One writer in a folder: others are refused by name, dead ones lock nobody out."""

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qtool.errors import InputError, WriteError
from qtool.files.lock import OF_LOCKS, is_written, only_writer
from qtool.files.whole import write_text
from tests.runs.left import wait_until

HOLDER = """
import sys, time
from pathlib import Path
from qtool.files.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that writes in a folder until it is ended."""
    argv = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def enter(folder: Path) -> None:
    with only_writer(folder):
        pass


def test_a_second_writer_is_refused_and_told_who_the_first_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    process = hold(folder)
    try:
        with pytest.raises(InputError) as refused:
            enter(folder)
        who = f"process {process.pid} on {socket.gethostname()}, since 20"
        assert str(refused.value).startswith(f"{folder}: {who}")
        assert "wait for it to end" in str(refused.value)
        Path(tmp_path / "same").symlink_to(folder)
        with pytest.raises(InputError, match=f"process {process.pid} "):
            enter(tmp_path / "same")
        (folder / ".writer.json").write_text("{")
        with pytest.raises(InputError, match="another process writes there"):
            enter(folder)
        (folder / ".writer.json").write_text(
            json.dumps({"host": "h", "process": process.pid, "since": 0})
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert {child.name for child in folder.iterdir()} == set(OF_LOCKS)
    with only_writer(folder):
        assert f"process {process.pid} on h" in capsys.readouterr().err
    assert not folder.exists() or list(folder.iterdir()) == []


def test_blocks_of_one_thread_lie_in_one_another_and_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    refused: list[Exception] = []

    def other() -> None:
        try:
            enter(folder)
        except InputError as error:
            refused.append(error)

    with only_writer(folder), only_writer(folder):
        enter(folder)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (folder / ".lock").exists()
    assert "another thread" in str(refused[0])
    assert list(tmp_path.iterdir()) == []  # nothing was put there
    with only_writer(folder):
        write_text(folder / "a.txt", "a")
    assert [child.name for child in folder.iterdir()] == ["a.txt"]


def test_what_killed_processes_left_is_swept_but_not_what_is_in_use(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from qtool.files.whole import write_atomically\n"
        "def write(path):\n"
        "    path.write_text('half')\n"
        "    time.sleep(600)\n"
        "write_atomically(Path(sys.argv[1]), write)\n"
    )
    argv = [sys.executable, "-c", program]
    dead, alive = (subprocess.Popen([*argv, str(tmp_path / n)]) for n in ("a.json", "b.json"))
    try:
        wait_until(lambda: len(list(tmp_path.glob(".*/*.json"))) == 2, 60)
        dead.kill()
        dead.wait()
        (tmp_path / ".recipe.yaml.123.tmp").write_text("{")  # as older versions left it
        (tmp_path / ".model.onnx.unproven").mkdir()
        (tmp_path / ".mine.tmp").write_text("not qtool's")
        enter(tmp_path)
        left = sorted(child.name for child in tmp_path.iterdir())
        assert left[0].startswith(".b.json.")
        assert left[1:] == [".mine.tmp"]
    finally:
        for process in (dead, alive):
            process.kill()
            process.wait()


def test_a_folder_that_is_removed_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_writer(folder):
        write_text(folder / "a.txt", "a")
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(WriteError, match=r"a\.txt: cannot be written: its folder was removed"):
            write_text(folder / "a.txt", "b")
        assert not folder.exists()
        folder.mkdir()  # another one in its place
        with pytest.raises(WriteError, match="its folder was removed"):
            write_text(folder / "changes" / "a.txt", "b")
        with pytest.raises(WriteError, match="its folder was removed"):
            enter(folder)
    assert not (folder / "changes").exists()


def test_whether_a_process_writes_in_a_folder_is_told_without_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_written(folder)
    assert not folder.exists()
    process = hold(folder)
    try:
        assert is_written(folder)
        assert is_written(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not is_written(folder)  # what it left says otherwise
    with only_writer(folder):
        assert is_written(folder)
    assert not is_written(folder)

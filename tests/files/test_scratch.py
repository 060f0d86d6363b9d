"""Temporary folders: what killed processes leave of them goes with the next that makes one."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qtool.errors import WriteError
from qtool.files.scratch import scratch

HOLDER = """
import time
from qtool.files.scratch import scratch
with scratch() as folder:
    (folder / "half").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_swept_and_what_is_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            theirs = Path(process.stdout.readline().strip())
            assert theirs.parent == tmp_path
            with scratch() as mine:
                assert set(tmp_path.iterdir()) == {theirs, mine}
        finally:
            process.kill()
    assert [p.name for p in theirs.iterdir()] == ["half"]
    with scratch() as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []


def test_where_no_temporary_folder_can_be_made_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(WriteError, match=r"^no temporary folder .*: No such .* TMPDIR "):
        lend()


def lend() -> None:
    with scratch():
        raise AssertionError("there is none")

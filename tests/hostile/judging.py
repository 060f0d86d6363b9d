"""A command run in this process, and what it must not do: raise, hang, or take memory."""

import io
import os
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from qtool.cli import main

MOST_SECONDS = 10.0  # of CPU
MOST_MEMORY = 2**30  # bytes over what the process had
NORMAL = (0, 1, 2)
_HIGHEST, _NOW = "VmHWM:", "VmRSS:"


@dataclass(frozen=True)
class Verdict:
    """What a command did.

    Attributes:
        code: its exit code; None where it ended with an exception.
        seconds: of CPU, of this process and its children.
        memory: bytes that it had at its most, over what there were before.
        said: its last words on standard error, or the traceback.
        shown: what it printed on standard output.
    """

    code: object
    seconds: float
    memory: int
    said: str
    shown: str = ""

    @property
    def problem(self) -> str:
        """What is not as it must be; "" where nothing is."""
        if self.code not in NORMAL:
            return f"ended with {self.code}"
        if "Traceback" in self.said:
            return "traceback"
        if self.code and not self.said.strip() and "damaged" not in self.shown:  # by inspect
            return "no message"
        if self.seconds > MOST_SECONDS:
            return f"{self.seconds:.1f} s of CPU"
        if self.memory > MOST_MEMORY:
            return f"{self.memory / 2**20:.0f} MiB"
        return ""


def judged(argv: Sequence[str], folder: Path) -> Verdict:
    """Run a command in a folder and return what it did."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    before, began = _resident(reset=True), _cpu()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main(list(argv))
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException as error:  # what would be a traceback, and an end by a signal
            err.write(traceback.format_exc(limit=-6))
            code = type(error).__name__
    return Verdict(code, _cpu() - began, _resident() - before, err.getvalue(), out.getvalue())


def _cpu() -> float:
    """Return seconds of CPU of this process and of its children that have ended."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def _resident(*, reset: bool = False) -> int:
    """Return the bytes of memory that this process had at its most since it was reset."""
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return _status(_NOW)
        return _status(_NOW)
    return _status(_HIGHEST)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0


def slept(seconds: float) -> None:
    """Wait; for children that are to end."""
    time.sleep(seconds)

"""What processes leave behind: children, semaphores, memory and temporary files."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 10.0  # seconds in which all must be gone


def start_alone(*argv: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start qtool in a session of its own, by which all that it starts is known."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "qtool", *argv],
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def of_session(session: int) -> set[int]:
    """Return the processes of a session that have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.add(int(entry.name))
    return found


def semaphores_of(processes: set[int]) -> set[Path]:
    """Return the named semaphores that processes have open."""
    found = set()
    for process in processes:
        try:
            maps = Path(f"/proc/{process}/maps").read_text()
        except OSError:
            continue
        found |= {Path(name) for name in re.findall(r"/dev/shm/sem\.\S+", maps)}
    return found


def memory_of(processes: set[int]) -> int:
    """Return the bytes of memory that are theirs alone or shared, each in proportion."""
    total = 0
    for process in processes:
        try:
            said = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * int(re.findall(r"^Pss:\s+(\d+)", said, re.MULTILINE)[0])
    return total


def wait_until(true: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait until something is true, or for so long; return the seconds that it took."""
    start = time.monotonic()
    while not true() and time.monotonic() - start < seconds:
        time.sleep(0.05)
    return time.monotonic() - start


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a session that a test started, whatever is left of it."""
    for each in of_session(process.pid):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()

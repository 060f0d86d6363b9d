"""Trainings that torchrun starts in two processes, for tests; one of them may be made to fail."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.runs.left import of_session

PATIENCE = 150.0  # seconds in which a training of a few seconds must end, on a machine in use
# what process 1 is given before qtool runs in it
WITH_A_FAULT = """
import os, sys
from tests.world import faults
if os.environ["RANK"] == "1":
    getattr(faults, os.environ["FAULT"])()
from qtool.cli import main
main(sys.argv[1:])
"""


class Training:
    """A training by torchrun, in a session of its own, by which all of its processes are known."""

    def __init__(
        self, path: Path, run: Path, *more: str, restarts: int = 0, fault: str = ""
    ) -> None:
        self.log = run.with_suffix(".log")
        program = ["-m", "qtool"]
        if fault:
            program = [str(run.with_suffix(".py"))]
            Path(program[0]).write_text(WITH_A_FAULT)
        argv = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), *program]
        argv += ["train", str(path), "--run-dir", str(run), "--device", "cpu", *more]
        said = {"FAULT": fault, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *argv],
                stdout=out,
                stderr=out,
                env=os.environ | said,
                start_new_session=True,
            )
        self.session = self.process.pid

    def rank(self, wanted: int) -> int:
        """Return the process of a rank, 0 where it is not there yet."""
        for number in self.processes():
            try:
                entries = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"RANK={wanted}".encode() in entries and self.process.pid == _parent(number):
                return number
        return 0

    def processes(self) -> set[int]:
        """Return those that have not ended; torchrun gives each one it starts a session."""
        found, waiting = set(), [self.process.pid]
        while waiting:
            number = waiting.pop()
            if number not in found and Path(f"/proc/{number}").exists():
                found.add(number)
                waiting += _children(number)
        return found | of_session(self.session)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return torchrun's exit code and what all processes said."""
        code = self.process.wait(PATIENCE)
        return code, self.log.read_text()

    def kill(self) -> None:
        """End what a test started, whatever is left of it."""
        for number in self.processes():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _parent(number: int) -> int:
    """Return the process that started another, 0 where that has ended."""
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _children(number: int) -> list[int]:
    """Return the processes that one has started."""
    all_of_them = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [each for each in all_of_them if _parent(each) == number]

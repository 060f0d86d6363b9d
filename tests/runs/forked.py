"""qtool in a process of its own that is forked from the test's, which has loaded torch already.

A Python that starts anew loads torch for seconds; what these tests send signals to is a training.
"""

import os
import signal
import sys
import traceback
from typing import NoReturn

from qtool.cli import main


class Forked:
    """A command that runs, its standard error readable line by line.

    What it writes on standard output must fit a pipe, 64 KiB: it is read at the end.

    Attributes:
        stderr: what it says.
    """

    def __init__(self, *argv: str) -> None:
        """Start `qtool ARGV`."""
        out, err = os.pipe(), os.pipe()
        self._process = os.fork()
        if not self._process:
            _run(argv, out[1], err[1])
        for _, writing in (out, err):
            os.close(writing)
        self._stdout, self.stderr = os.fdopen(out[0]), os.fdopen(err[0])

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self._process, number)

    def ended(self) -> tuple[int, str, str]:
        """Wait, and return the exit code, standard output and what is left of standard error."""
        with self.stderr, self._stdout:
            err, out = self.stderr.read(), self._stdout.read()
        _, status = os.waitpid(self._process, 0)
        return os.waitstatus_to_exitcode(status), out, err


def _run(argv: tuple[str, ...], out: int, err: int) -> NoReturn:
    """Be `qtool ARGV`, from its first line to its exit code."""
    code: object = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        sys.argv = ["qtool", *argv]
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))

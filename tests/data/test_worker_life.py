"""Workers end with the process that reads from them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.left import PATIENCE, end, of_session, wait_until

READER = """
import multiprocessing, sys, time
from qtool.data.worker_life import EndsWithReader

def work(begin, number):
    begin(number)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    begin, lock = EndsWithReader(), context.Lock()
    workers = [context.Process(target=work, args=(begin, k), daemon=True) for k in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_end_when_their_reader_is_killed(method: str, tmp_path: Path) -> None:
    program = tmp_path / "reader.py"
    program.write_text(READER)
    process = subprocess.Popen(
        [sys.executable, str(program), method],
        stderr=subprocess.DEVNULL,  # the tracker of semaphores says that it removed one
        start_new_session=True,
    )
    count = 5 if method == "forkserver" else 4  # reader, tracker and two workers; the server
    try:
        wait_until(lambda: len(of_session(process.pid)) == count, 60)
        assert len(of_session(process.pid)) == count
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not of_session(process.pid), PATIENCE)
        assert of_session(process.pid) == set()
    finally:
        end(process)

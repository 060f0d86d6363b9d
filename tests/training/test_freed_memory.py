"""Memory that is freed and wanted again, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

CHILD = """
import resource
from qtool.training.freed_memory import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), pages(), keep_freed_memory(), pages(), pages())
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def child(**environment: str) -> list[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    ended = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        check=True,
        env=kept | environment,
    )
    return ended.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="glibc's own settings")
def test_freed_memory_is_not_asked_of_the_kernel_again() -> None:
    *before, asked, _, again = child()
    assert asked == "True"
    assert min(map(int, before)) > 1000  # pages that are cleared each time
    assert int(again) < 100


def test_what_the_user_told_glibc_stays() -> None:
    assert child(MALLOC_TRIM_THRESHOLD_="131072")[2] == "False"

"""Freed memory, which the next training step wants again.

glibc gives large blocks, and the end of its heap, back to the kernel when they are freed. A step
frees all its activations, so that every step would have the kernel clear hundreds of megabytes of
pages anew, which can take as long as its arithmetic.
"""

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST = 2**31 - 1  # bytes; what an int holds
MOST_OF_OLD = 2**25  # of M_MMAP_THRESHOLD, where glibc has a limit for it
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now on; return whether that could be asked for.

    It cannot where the C library is another one than glibc, and is not where the user has told
    glibc otherwise, by an environment variable. No number depends on it; the process holds on to
    the most that it has used.
    """
    if any(os.environ.get(name) for name in OWN):
        return False
    with suppress(OSError, AttributeError):  # no such library, or no such function in it
        ask = ctypes.CDLL("libc.so.6").mallopt
        stays = bool(ask(M_MMAP_THRESHOLD, MOST) or ask(M_MMAP_THRESHOLD, MOST_OF_OLD))
        return stays and bool(ask(M_TRIM_THRESHOLD, MOST))
    return False

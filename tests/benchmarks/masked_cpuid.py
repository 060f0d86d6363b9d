"""ONNX Runtime on this processor, told that it has fewer instructions than it has.

A copy of the library is made in which every `cpuid` instruction is an invalid one of the same
length; a handler of the signal that this raises answers with less than the truth, and the library
takes the kernels that it would take on such a processor. At full speed, which no emulator has: but
on this processor, not on an old one.
"""

import re
import shutil
import subprocess
from pathlib import Path

import onnxruntime

CPUID, INVALID = b"\x0f\xa2", b"\x0f\x0b"
HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static int without_avx512;

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned char *at = (unsigned char *)r[REG_RIP];
    unsigned leaf = r[REG_RAX], sub = r[REG_RCX], a, b, c, d;
    if (at[0] != 0x0f || at[1] != 0x0b) { signal(number, SIG_DFL); return; }
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) {
        c &= ~(1u << 11);                               /* AVX-512 VNNI */
        d &= ~(1u << 22 | 1u << 24 | 1u << 25);         /* AMX */
        if (without_avx512) b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31);
    }
    if (leaf == 7 && sub == 1) a &= ~(1u << 4 | 1u << 5); /* AVX VNNI, AVX-512 BF16 */
    r[REG_RAX] = a; r[REG_RBX] = b; r[REG_RCX] = c; r[REG_RDX] = d;
    r[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    const char *level = getenv("MASKED_CPUID");
    without_avx512 = level && !strcmp(level, "AVX2");
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, 0);
}
"""


def masked(scratch: Path, level: str) -> dict[str, str] | None:
    """Return the environment in which Python's onnxruntime believes in a lesser processor.

    None where that cannot be done here: it needs gcc, objdump and an x86-64 Linux.

    Args:
        scratch: a folder that stays as long as the environment is used.
        level: AVX2, or AVX-512 (without VNNI).
    """
    if not (shutil.which("gcc") and shutil.which("objdump")):
        return None
    handler, copy = scratch / "handler.so", scratch / "onnxruntime"
    if not copy.exists():
        source = scratch / "handler.c"
        source.write_text(HANDLER)
        argv = ["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(handler)]
        if subprocess.run(argv, check=False, capture_output=True).returncode:
            return None
        shutil.copytree(Path(onnxruntime.__file__).parent, copy)
        for library in copy.glob("capi/*pybind11_state*.so"):
            _take_cpuid(library)
    return {"LD_PRELOAD": str(handler), "PYTHONPATH": str(scratch), "MASKED_CPUID": level}


def _take_cpuid(library: Path) -> None:
    """Make the `cpuid` instructions of a library invalid, in place."""
    sections = subprocess.run(
        ["objdump", "-h", str(library)], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r" \.text +\w+ +(\w+) +\w+ +(\w+)", sections)
    assert found is not None
    start, offset = (int(number, 16) for number in found.groups())
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", str(library)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    code = bytearray(library.read_bytes())
    for address in re.findall(r"^ +(\w+):\tcpuid", listing, re.MULTILINE):
        place = int(address, 16) - start + offset
        assert code[place : place + 2] == CPUID
        code[place : place + 2] = INVALID
    library.write_bytes(code)

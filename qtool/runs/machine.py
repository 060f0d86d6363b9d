"""The machine that a run is on: its device, and what its numbers depend on beside the recipe."""

import os
import platform
import re
import shlex
import socket
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

import qtool
from qtool.errors import InputError
from qtool.runs.given import refuse_no_device


def pick_device(wanted: str, *, converts: bool = False) -> torch.device:
    """Return the device that `--device` names: auto, cpu, cuda, cuda:N, or mps, Apple's.

    Args:
        wanted: its name; auto is a CUDA device where there is one, else the CPU.
        converts: integers are made there, which takes float64.

    Raises:
        InputError: If there is no such device, or it has no float64.
    """
    refuse_no_device(wanted)
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = wanted.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(index or 0):
            have = f"only {count}" if count else "no CUDA device"
            raise InputError(f"--device {wanted}: this machine has {have}; use cpu or auto")
    if kind == "mps":
        if converts:
            raise InputError("--device mps: converting takes float64, which it has not; use cpu")
        if not torch.backends.mps.is_available():
            raise InputError("--device mps: this machine, or its torch, has none; use cpu or auto")
    return torch.device(wanted)


def device_name(device: torch.device) -> str:
    """Return what people call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'' if threads == 1 else 's'}"


def processor_name() -> str:
    """Return the processor's name; only Linux tells it in full."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or f"{platform.machine()} CPU"


def host_name() -> str:
    """Return what this machine calls itself on the network."""
    return socket.gethostname()


def command_given() -> str:
    """Return the command that runs now, as it may be typed; "" in other programs than qtool."""
    program = Path(sys.argv[0])
    own = program.stem == "qtool" or program.parts[-2:] == ("qtool", "__main__.py")
    return shlex.join(["qtool", *sys.argv[1:]]) if own else ""


def torchvision_version() -> str:
    """Return which torchvision is installed, in full, without loading it, which takes seconds."""
    found = find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    said = re.search(r"__version__ = ['\"](.*)['\"]", text)
    return said[1] if said else version("torchvision")


def environment(device: torch.device) -> dict[str, object]:
    """Return what the numbers of a run depend on beside its recipe."""
    return {
        "qtool": qtool.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "host": host_name(),
    }

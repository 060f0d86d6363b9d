"""What torchrun says of this process, in its environment; no torch is needed to read it."""

import os
from dataclasses import dataclass

from qtool.errors import InputError

KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Launched:
    """Which of the processes this is that torchrun has started.

    Attributes:
        rank, size: among all of them.
        local_rank, local_size: among those of this machine.
        restarts: how often torchrun has started them again.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes and speaks."""
        return self.rank == 0


def launched() -> Launched:
    """Return what the environment says; one process where torchrun is not there.

    Raises:
        InputError: If it says something that cannot be.
    """
    if not all(key in os.environ for key in KEYS):
        return Launched()
    texts = [os.environ[key] for key in KEYS]
    texts.append(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not all(text.isascii() and text.isdecimal() for text in texts):
        said = ", ".join(f"{key}={text}" for key, text in zip(KEYS, texts, strict=False))
        raise InputError(
            f"the environment is not torchrun's ({said}); unset these, or use torchrun"
        )
    made = Launched(*map(int, texts))
    if not (made.rank < made.size and made.local_rank < made.local_size <= made.size):
        raise InputError(
            f"the environment is not torchrun's: process {made.rank} of {made.size}, "
            f"{made.local_rank} of {made.local_size} here; start it by torchrun"
        )
    return made


def refuse_several(command: str) -> None:
    """Check that a command that works in one process was not started in several by torchrun.

    Raises:
        InputError: If it was.
    """
    if (size := launched().size) > 1:
        raise InputError(
            f"qtool {command} works in one process, and torchrun started {size}; leave torchrun out"
        )

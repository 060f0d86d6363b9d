"""Files of tensors, torch's own and safetensors, of which nothing is run and nothing overflows.

What a file says of its sizes is held against the file before it is loaded, and what it was loaded
to before it is used: a tensor can be a trillion views of one number, and a list a billion of one
list.
"""

import io
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from qtool.files.archives import begins_as_zip, contents_of, size_of
from qtool.files.safetensors_data import read_header

MOST_PICKLED = 16 * 2**20  # bytes of what is not tensors
MOST_READS = 4_000_000  # of an old file, whose parts have no sizes: some seconds
MOST_VALUES = 2_000_000
DEEPEST = 64
VIEWS = 16  # times that tensors may be larger than the file, as those are that share numbers


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, on the CPU.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it says what its size cannot hold.
        SafetensorError: If it is damaged in another way.
    """
    read_header(path)
    return load_file(path)


def read_torch(
    file: BinaryIO,
    device: torch.device | str = "cpu",
    *,
    allowed: Sequence[type[Namespace]] = (),
) -> object:
    """Return what torch.save wrote: tensors and plain data; nothing in a file is executed.

    Args:
        file: at its beginning.
        device: of the tensors.
        allowed: types beside those of plain data, which hold such and do nothing when made.

    Raises:
        Exception: Whatever torch raises for a damaged file, and ValueError where it holds more
            than its size allows.
    """
    size = size_of(file)
    if begins_as_zip(file):
        sizes = contents_of(file, stored=True)
        pickled = max((n for name, n in sizes.items() if name.endswith(".pkl")), default=0)
        if pickled > MOST_PICKLED:
            raise ValueError(f"it holds {pickled:,} bytes beside its tensors")
        taken = file
    else:
        taken = cast(BinaryIO, _Counted(file))
    with safe_globals(list(allowed)):
        data = torch.load(taken, map_location=device, weights_only=True)
    refuse_unbounded(data, most_bytes=VIEWS * size)
    return data


class _Counted(io.BufferedIOBase):
    """A file that is read in so many steps at most."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MOST_READS

    def _counted(self) -> BinaryIO:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it holds too much beside its tensors")
        return self._file

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes."""
        return self._counted().read(-1 if size is None else size)

    def readline(self, size: int | None = -1) -> bytes:
        """Return the bytes up to the end of a line."""
        return self._counted().readline(-1 if size is None else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()


def refuse_unbounded(data: object, *, most_bytes: int) -> None:
    """Check what a file was loaded to, every value as often as it is reached.

    Args:
        data: plain data and tensors.
        most_bytes: of all tensors.

    Raises:
        ValueError: If it holds more values or bytes, lies too deep, or holds itself.
    """
    done: dict[int, tuple[int, int, int]] = {}  # by id: values, bytes, depth
    waiting: list[tuple[object, bool]] = [(data, False)]
    within = set[int]()
    while waiting:
        value, complete = waiting.pop()
        inner = _inner(value)
        if complete:
            sizes = [done[id(part)] for part in inner]
            values = 1 + sum(size[0] for size in sizes)
            nbytes = (_bytes_of(value) if isinstance(value, Tensor) else 0) + sum(
                size[1] for size in sizes
            )
            depth = 1 + max((size[2] for size in sizes), default=0)
            if values > MOST_VALUES or depth > DEEPEST:
                raise ValueError(f"it holds more than {MOST_VALUES:,} values, or {DEEPEST} levels")
            if nbytes > most_bytes:
                raise ValueError(f"its tensors take {nbytes:,} bytes, which its size cannot hold")
            done[id(value)] = (values, nbytes, depth)
            within.discard(id(value))
        elif id(value) in within:
            raise ValueError("it holds itself")
        elif id(value) not in done:
            if inner:
                within.add(id(value))
            waiting.append((value, True))
            waiting += [(part, False) for part in inner]


def _inner(value: object) -> list[object]:
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def _bytes_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor with each of its numbers written out."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return 0  # no reader of qtool takes those
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"it has a tensor of {nbytes:,} bytes that are views of fewer")
    return nbytes

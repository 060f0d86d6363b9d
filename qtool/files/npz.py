"""NumPy's .npz files, whose arrays are held against the file before memory is asked for."""

import math
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.lib.npyio import NpzFile

from qtool.files.archives import contents_of


def arrays_of(file: BinaryIO, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Return some arrays of an .npz file, of those that it has; nothing in it is executed.

    Args:
        file: at its beginning.
        keys: names of the arrays.

    Raises:
        Exception: Whatever zipfile, zlib and NumPy raise for a damaged file, and ValueError where
            it says more than it holds.
    """
    sizes = contents_of(file)
    loaded = np.load(file, allow_pickle=False)
    return {key: _array(loaded, key, sizes) for key in keys if key in loaded}


def _array(archive: NpzFile, key: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Return an array whose header says no more than what is there."""
    assert archive.zip is not None  # it is open
    name = key if key in sizes else f"{key}.npy"
    with archive.zip.open(name) as part:
        version = read_magic(part)
        read_header = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
        shape, _, dtype = read_header(part)
        said, held = math.prod(shape) * dtype.itemsize, sizes[name] - part.tell()
    if said != held and not dtype.hasobject:  # NumPy refuses those in words of its own
        raise ValueError(f"{key} takes {said:,} bytes, as it says, and has {held:,}")
    return archive[key]

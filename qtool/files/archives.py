"""Zip archives, whose list of contents is held against the file before anything is unpacked.

NumPy's .npz and torch's checkpoints are such. A list can say that a few bytes become gigabytes, or
name the same bytes a million times.
"""

import os
import struct
import zipfile
from typing import BinaryIO

MOST_LISTED = 16 * 2**20  # bytes of the list of contents: 100,000 tensors and more
FREE = 256 * 2**20  # bytes that contents may have, however small the file is
DENSEST = 32  # times that contents may be larger than their file

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_TAIL = 2**16 + 22  # bytes: the longest comment, and the record of the end
_FROM_END = 20  # bytes of the locator of the large record, right before the small one


def begins_as_zip(file: BinaryIO) -> bool:
    """Tell whether a file, which is at its beginning, begins as a zip archive does."""
    first = file.read(2)
    file.seek(0)
    return first == b"PK"


def size_of(file: BinaryIO) -> int:
    """Return the bytes of a file, which is at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def contents_of(file: BinaryIO, *, stored: bool = False) -> dict[str, int]:
    """Return name -> bytes of an archive's files, which no reader needs more memory for.

    Args:
        file: the archive, at its beginning, where it is left.
        stored: its files are as they are, not packed smaller; as torch writes them.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no archive, or its contents are larger than such a file can hold.
    """
    size = size_of(file)
    if (listed := _listed(file, size)) > MOST_LISTED:
        raise ValueError(f"its list of contents takes {listed:,} bytes")
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    # NotImplementedError is what zipfile raises for an archive of a version that it does not know
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"no zip archive: {error}") from error
    file.seek(0)
    total = sum(item.file_size for item in found)
    most = size if stored else max(FREE, DENSEST * size)
    if total > most:
        raise ValueError(f"its contents take {total:,} bytes, as it says, and it has {size:,}")
    names = {item.filename: item.file_size for item in found}
    if len(names) < len(found):
        raise ValueError("it has two files of one name")
    if stored and any(item.compress_type != zipfile.ZIP_STORED for item in found):
        raise ValueError("its contents are packed, which no checkpoint is")
    return names


def _listed(file: BinaryIO, size: int) -> int:
    """Return how many bytes an archive's list of contents takes, as its end says."""
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read(_TAIL)
    found = tail.rfind(_END)
    if found < 0 or len(tail) < found + 22:
        raise ValueError("no zip archive: it has no end")
    (listed,) = struct.unpack_from("<I", tail, found + 12)
    locator = found - _FROM_END
    if locator >= 0 and tail.startswith(_LOCATOR, locator):
        (place,) = struct.unpack_from("<Q", tail, locator + 8)
        if place + 56 <= size:
            file.seek(place)
            record = file.read(56)
            if record.startswith(_END64):
                (listed,) = struct.unpack_from("<Q", record, 40)
    return listed

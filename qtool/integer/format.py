"""The format of an integer model's file: which ones are read, and that a file is as it was written.

1 has no rounding of inputs: it was always half_to_even. 2 has nothing that stands at call sites.
3 has no digest, and does not say what it was made of. This reads no tensors and needs no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from qtool import __version__
from qtool.errors import DamagedFileError, InputError
from qtool.files.safetensors_data import read_header
from qtool.files.safetensors_digest import refuse_unless_as_written

FORMAT = "4"
READABLE = ("1", "2", "3", "4")
WITHOUT_DIGEST = ("1", "2", "3")
MADE_OF, WRITER = "made_of", "qtool"  # names in the metadata
WRITTEN = {"format": FORMAT, WRITER: __version__}


def read_metadata(path: Path) -> Mapping[str, str]:
    """Return what an integer model's file says of itself, once all of it is what was written.

    Raises:
        InputError: If the file is missing, not an integer model, or of a newer format.
        DamagedFileError: If it is not what was written.
    """
    try:
        header = read_header(path)
        said = header.metadata
        if said.get("format") not in READABLE:
            raise InputError(f"{path}: not an integer model of {_formats(said)}")
        if said["format"] not in WITHOUT_DIGEST:
            refuse_unless_as_written(path, header=header)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; convert again") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{path}: not an integer model ({why}); give a run folder, or a file of qtool convert"
        ) from error
    return said


def made_of(path: Path) -> str:
    """Return the SHA-256 of what an integer model was made of; "" where its file does not say.

    That is the checkpoint's, or, where nothing was trained, that of recipe and float network.

    Raises:
        InputError: As `read_metadata`.
    """
    return read_metadata(path).get(MADE_OF, "")


def _formats(said: Mapping[str, str]) -> str:
    """Say which formats are read, and who reads another."""
    read = f"format {', '.join(READABLE[:-1])} or {READABLE[-1]}, which qtool reads"
    number, writer = said.get("format", ""), said.get(WRITER)
    if not number.isdecimal() or int(number) <= int(FORMAT):
        return read
    who = f"qtool {writer}" if writer else "a newer qtool"
    return f"{read} ({__version__}); {who} wrote format {number} and reads it"

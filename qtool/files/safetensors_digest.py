"""Safetensors files that hold a digest of all that is in them, and the same bytes for the same.

The digest stands in the metadata, under `sha256`: SHA-256 over the rest of the header, as JSON with
sorted keys and no blanks, and the tensors' bytes behind it. Other readers take it for metadata.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from qtool.errors import DamagedFileError
from qtool.files.checksums import NOT_AS_WRITTEN
from qtool.files.json_data import parse_json
from qtool.files.safetensors_data import Header, read_header
from qtool.files.whole import write_atomically

DIGEST = "sha256"
_LENGTH = 8  # bytes that say how long the header is, and what it is filled up to
_CHUNK = 2**20


def write_with_digest(path: Path, tensors: bytes, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one move.

    Args:
        path: of the file.
        tensors: a whole file without metadata, as `safetensors.torch.save` makes it.
        metadata: what it says of itself.

    Raises:
        InputError: If it cannot be written there.
    """
    length = int.from_bytes(tensors[:_LENGTH], "little")
    said = parse_json(tensors[_LENGTH : _LENGTH + length].decode())
    assert isinstance(said, dict)
    held = memoryview(tensors)[_LENGTH + length :]
    digest = hashlib.sha256(_canonical(said | {"__metadata__": dict(metadata)}))
    digest.update(held)
    header = said | {"__metadata__": {**metadata, DIGEST: digest.hexdigest()}}
    text = _canonical(header)
    text += b" " * (-len(text) % _LENGTH)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH, "little"))
            file.write(text)
            file.write(held)

    write_atomically(path, write)


def refuse_unless_as_written(path: Path, *, header: Header | None = None) -> None:
    """Check that a file is what was written, by the digest in it.

    Args:
        path: of the file.
        header: what it says of itself, where that was read already.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no safetensors file.
        DamagedFileError: If it is not, or holds no digest.
    """
    given = header or read_header(path)
    rest = {key: value for key, value in given.metadata.items() if key != DIGEST}
    said: dict[str, object] = {name: t.model_dump() for name, t in given.tensors.items()}
    digest = hashlib.sha256(_canonical(said | {"__metadata__": rest}))
    with path.open("rb") as file:
        file.seek(given.start)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != given.metadata.get(DIGEST):
        raise DamagedFileError(f"{path}: {NOT_AS_WRITTEN}")


def _canonical(header: Mapping[str, object]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()

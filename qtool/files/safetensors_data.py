"""What a safetensors file says of itself: its metadata and tensors, within the file's own size.

Layout: 8 bytes, the length of the header; the header, JSON; the tensors' bytes without gaps
(https://github.com/huggingface/safetensors, format 0.4).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter

from qtool.files.json_data import parse_json

MOST_BYTES = 32 * 2**20  # of the header
MOST_VALUES = 1_000_000  # of the header: 100,000 tensors and more
_LENGTH = 8  # bytes that say how long the header is
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


class StoredTensor(BaseModel):
    """What a header says of one tensor."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: list[NonNegativeInt]
    """Where its bytes begin and end, behind the header."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        metadata: names and texts that its writer chose.
        tensors: by their names.
        start: bytes before the first tensor.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]
    start: int


_TENSOR = TypeAdapter(StoredTensor)
_METADATA = TypeAdapter(dict[str, str])


def read_header(path: Path) -> Header:
    """Return what a file says of itself, where its tensors fill the file and no more.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no safetensors file, or says what its size cannot hold.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if size < _LENGTH or length > size - _LENGTH:
            raise ValueError(f"it has {size:,} bytes, and says that its header has {length:,}")
        if length > MOST_BYTES:
            raise ValueError(f"its header has {length:,} bytes; the most is {MOST_BYTES:,}")
        text = file.read(length).decode()
    data = parse_json(text, most_values=MOST_VALUES)
    if not isinstance(data, dict):
        raise ValueError("its header is no JSON object")
    metadata = _METADATA.validate_python(data.pop("__metadata__", {}), strict=True)
    tensors = {name: _TENSOR.validate_python(said) for name, said in data.items()}
    _refuse_other_sizes(tensors, size - _LENGTH - length)
    return Header(metadata, tensors, _LENGTH + length)


def _refuse_other_sizes(tensors: Mapping[str, StoredTensor], held: int) -> None:
    """Check that tensors lie one behind the other, each as long as its shape, and fill a file."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        bits = _BITS.get(tensor.dtype)
        if bits is None:
            raise ValueError(f"{name} is of an unknown type, {tensor.dtype[:20]}")
        if len(tensor.shape) > 64 or len(tensor.data_offsets) != 2:
            raise ValueError(f"{name} has no shape and place that a tensor can have")
        begins, ends = tensor.data_offsets
        if begins != end or (ends - begins) * 8 != math.prod(tensor.shape) * bits:
            raise ValueError(f"the bytes of {name} are not where and as many as its shape says")
        end = ends
    if end != held:
        raise ValueError(f"its tensors take {end:,} bytes, as it says, and it has {held:,}")

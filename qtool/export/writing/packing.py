"""n-bit weights in standard operators, at their true width, which runtimes unpack once at load.

A byte holds 8/n codes of n = 1, 2 or 4 bits, lowest bits first; `Gather` looks each byte up in a
table of 256 rows of 8/n int8 codes. Other widths are the sum of such parts (3 = 2 + 1, 6 = 4 + 2).
The runtime folds Cast, Gather, Reshape (and Add) into a plain int8 weight when it loads the file,
so that the int8 kernels run. Needs opset 13.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """Some bits of every code.

    Attributes:
        width: 1, 2 or 4 bits.
        packed: uint8 [ceil(N * width / 8)].
        table: [256, 8 / width]; row b holds what byte b adds to its 8 / width codes.
    """

    width: int
    packed: UInt8
    table: NDArray[np.integer]


@dataclass(frozen=True)
class Packed:
    """Codes at their true width; the codes are the sum of the parts."""

    shape: list[int]
    parts: list[Part]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the packed codes, without the tables."""
        return sum(part.packed.nbytes for part in self.parts)


def part_widths(bits: int) -> list[int]:
    """Return the widths, of 4, 2 and 1, that add up to `bits` (1..7), widest first."""
    if not 1 <= bits <= 7:
        raise ValueError(f"only 1 to 7 bits are packed, got {bits}")
    return [width for width in (4, 2, 1) if bits & width]


def pack(codes: NDArray[np.integer], bits: int, code_min: int, code_step: int) -> Packed:
    """Pack codes = code_min + code_step * k, 0 <= k < 2^bits.

    Raises:
        ValueError: If a code is not of that form.
    """
    steps = codes.astype(np.int32).reshape(-1) - code_min
    index = steps // code_step
    if (steps % code_step).any() or index.min() < 0 or index.max() >= 2**bits:
        raise ValueError(f"codes do not fit into {bits} bits from {code_min} by {code_step}")
    parts: list[Part] = []
    widths = part_widths(bits)
    shift = bits
    for width in widths:
        shift -= width
        values = (index >> shift) & (2**width - 1)
        table = _table(width) * (code_step << shift)
        if not parts:
            table = table + code_min
        kind = np.int8 if len(widths) == 1 else np.int32  # runtimes add int32, not int8
        parts.append(Part(width, _pack_bytes(values, width), table.astype(kind)))
    return Packed(list(codes.shape), parts)


def unpack(packed: Packed) -> Int8:
    """Return the codes: what the graph computes, written once more in NumPy."""
    count = int(np.prod(packed.shape))
    flat = sum(part.table[part.packed].reshape(-1)[:count] for part in packed.parts)
    return np.asarray(flat).astype(np.int8).reshape(packed.shape)


def _table(width: int) -> NDArray[np.int32]:
    """Return [256, 8 / width]: the fields of every byte, lowest bits first."""
    shifts = np.arange(0, 8, width)
    return ((np.arange(256)[:, None] >> shifts) & (2**width - 1)).astype(np.int32)


def _pack_bytes(values: NDArray[np.int32], width: int) -> UInt8:
    per_byte = 8 // width
    padded = np.zeros(-(-len(values) // per_byte) * per_byte, np.int32)
    padded[: len(values)] = values
    fields = padded.reshape(-1, per_byte) << np.arange(0, 8, width)
    return fields.sum(1).astype(np.uint8)

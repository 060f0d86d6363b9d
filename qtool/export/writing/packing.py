"""n-bit weights in standard operators, at their true width, which runtimes unpack once at load.

A slot of a byte holds as many codes as fit, and one table turns bytes into codes, by `Gather`:

| codes | of a slot | bytes, codes of a group | table |
|---|---|---|---|
| 1 bit | 8 | 1, 8 | 256 x 8 |
| 3 codes (ternary) | 5 | 1, 5 | 243 x 5 |
| 2 bits | 4 | 1, 4 | 256 x 4 |
| 3 bits | 2, as 6 bits | 3, 8 | 256 x 2 |
| 4 bits | 2 | 1, 2 | 256 x 2 |
| 5, 6, 7 bits | 1 | 5, 8; 3, 4; 7, 8 | 256 x 1 |

Where a slot leaves bits of its byte free, those of a group's bytes hold one slot more, or three at
5 bits. Cast, Div and MatMul on int32 put them together; the table ignores them. A runtime folds all
of it into a plain int8 weight when it loads the file, so that its int8 kernels run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer]
Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]
PLAIN_BITS = 8


@dataclass(frozen=True)
class Form:
    """How many codes there are, and how many of them share a byte.

    Attributes:
        name: as tables are called.
        levels: how many different codes there are.
        codes: in a slot.
        bytes: in a group.
        extras: slots that a group's bytes hold beside their own.
    """

    name: str
    levels: int
    codes: int
    bytes: int = 1
    extras: int = 0

    @property
    def values(self) -> int:
        """Return how many values a slot has."""
        return self.levels**self.codes

    @property
    def tops(self) -> int:
        """Return how many values the rest of a byte has that an extra slot lies in."""
        return 256 // self.values

    @property
    def group(self) -> int:
        """Return how many codes a group holds."""
        return self.codes * (self.bytes + self.extras)

    @property
    def table_bytes(self) -> int:
        """Return what its table takes on disk."""
        return len(self.slots()) * self.codes

    def slots(self) -> NDArray[np.int64]:
        """Return what each byte stands for in a slot: [256], or [243] for ternary codes."""
        rows = 256 if self.extras else self.values
        return np.arange(rows) % self.values

    def bytes_of(self, count: int) -> int:
        """Return the bytes that so many codes take, without the table."""
        return -(-count // self.group) * self.bytes


FORMS = (
    Form("1bit", 2, 8),
    Form("ternary", 3, 5),
    Form("2bit", 4, 4),
    Form("3bit", 8, 2, 3, 1),
    Form("4bit", 16, 2),
    Form("5bit", 32, 1, 5, 3),
    Form("6bit", 64, 1, 3, 1),
    Form("7bit", 128, 1, 7, 1),
)
"""Narrowest first."""


@dataclass(frozen=True)
class Layout:
    """A form, and which codes it holds: lowest + step * k, for k from 0 on.

    Attributes:
        form: how they share bytes.
        step: 1, from -levels / 2 on (-1 for ternary codes), or 2: odd codes around 0.
    """

    form: Form
    step: int = 1

    @property
    def lowest(self) -> int:
        """Return the smallest code that it holds."""
        return 1 - self.form.levels if self.step == 2 else -(self.form.levels // 2)

    @property
    def highest(self) -> int:
        """Return the largest code that it holds."""
        return self.lowest + self.step * (self.form.levels - 1)

    def holds(self, codes: Codes) -> bool:
        """Tell whether all codes are among those that it holds."""
        return self in _holding(codes)


LAYOUTS = tuple(
    Layout(form, step) for form in FORMS for step in ((1,) if form.levels == 3 else (2, 1))
)
"""Narrowest first."""


@dataclass(frozen=True)
class Packed:
    """Codes at their true width.

    Attributes:
        shape: of the codes.
        form: how they share bytes.
        packed: uint8 [groups, bytes of a group]; [bytes] where each byte is a group.
        table: int8, or uint8, [256 or 243, codes of a slot]: row b holds what byte b stands for.
    """

    shape: list[int]
    form: Form
    packed: UInt8
    table: NDArray[np.int8 | np.uint8]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the packed codes, without the table."""
        return self.packed.nbytes

    @cached_property
    def count(self) -> int:
        """Return how many codes there are."""
        return int(np.prod(self.shape))

    @property
    def is_full(self) -> bool:
        """Tell whether no place of the last group is left over."""
        return self.count % self.form.group == 0


def layouts(codes: Codes, bits: int) -> list[Layout]:
    """Return what may hold a weight's codes, narrowest first, up to the width of its grid.

    Codes of 8 bits stay plain, [], unless half their bits suffice: plain ones load faster.
    """
    found = _holding(codes)
    most = 2**bits if bits < PLAIN_BITS else 2 ** (PLAIN_BITS // 2)
    if bits < PLAIN_BITS and found:  # zeros between odd codes take one bit more than the grid
        most = max(most, found[0].form.levels)
    return [layout for layout in found if layout.form.levels <= most]


def _holding(codes: Codes) -> list[Layout]:
    """Return the layouts that hold codes, narrowest first."""
    low, high, odd = int(codes.min(initial=127)), int(codes.max(initial=-127)), (codes & 1).all()
    return [
        layout
        for layout in LAYOUTS
        if layout.lowest <= low and high <= layout.highest and (odd or layout.step == 1)
    ]


def choose_layouts(weights: Mapping[str, tuple[Codes, int]]) -> dict[str, Layout]:
    """Choose a layout for each weight: the narrowest, but for those that do not save their table.

    Args:
        weights: name -> its codes, and the bits of their grid.

    Returns:
        Name -> layout, of those that are not to stay plain.
    """
    found = {name: layouts(*given) for name, given in weights.items()}
    found = {name: holding for name, holding in found.items() if holding}
    chosen = {name: holding[-1] for name, holding in found.items()}

    def cost(choice: Mapping[str, Layout]) -> int:
        payload = sum(la.form.bytes_of(weights[name][0].size) for name, la in choice.items())
        return payload + sum(layout.form.table_bytes for layout in set(choice.values()))

    while True:  # all that gain by one more layout take it, the one that saves most first
        tried = [
            {
                name: layout
                if layout in found[name] and layout.form.levels < now.form.levels
                else now
                for name, now in chosen.items()
            }
            for layout in LAYOUTS
        ]
        best = min(tried, key=cost)
        if cost(best) >= cost(chosen):
            return chosen
        chosen = best


def pack(codes: Codes, layout: Layout, zero_point: int = 0) -> Packed:
    """Pack codes; with a zero point, they come out as uint8 around it.

    Raises:
        ValueError: If the layout does not hold them.
    """
    form = layout.form
    if not layout.holds(codes):
        kind = "odd codes" if layout.step == 2 else "codes"
        raise ValueError(f"not all are {kind} from {layout.lowest} on, {form.name}")
    groups = -(-codes.size // form.group)
    places = np.zeros(groups * form.group, np.uint8)
    places[: codes.size] = (codes.reshape(-1).astype(np.int16) - layout.lowest) // layout.step
    slots = _joined(places.reshape(groups, -1, form.codes), form.levels)
    own, extra = slots[:, : form.bytes], slots[:, form.bytes :]
    tops = _split(_joined(extra, form.values), form.tops, form.bytes)
    packed = (own + form.values * tops).astype(np.uint8)
    digits = _split(form.slots(), form.levels, form.codes)
    kind = np.uint8 if zero_point else np.int8
    table = (layout.lowest + zero_point + layout.step * digits).astype(kind)
    bytes_ = packed if form.extras else packed.reshape(-1)
    return Packed(list(codes.shape), form, bytes_, table)


def unpack(packed: Packed) -> NDArray[np.int8 | np.uint8]:
    """Return the codes: what the graph computes, written once more in NumPy."""
    form, index = packed.form, packed.packed.astype(np.int32)
    if form.extras:
        tops = index // form.values @ form.tops ** np.arange(form.bytes)
        index = np.concatenate([index, _split(tops, form.values, form.extras)], axis=1)
    return packed.table[index].reshape(-1)[: packed.count].reshape(packed.shape)


def _joined(digits: Codes, radix: int) -> NDArray[np.int32]:
    """Return the numbers [...] of digits [..., n], the lowest first."""
    numbers = np.zeros(digits.shape[:-1], np.int32)
    for place in range(digits.shape[-1]):
        numbers += digits[..., place].astype(np.int32) * radix**place
    return numbers


def _split(numbers: Codes, radix: int, count: int) -> NDArray[np.int32]:
    """Return the digits [..., count] of numbers [...], the lowest first."""
    powers = np.asarray(radix ** np.arange(count), np.int32)
    return numbers.astype(np.int32)[..., None] // powers % radix

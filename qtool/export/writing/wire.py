"""Protocol Buffers as bytes: the fields of a message, read and written without onnx.

Who runs a file can so check it where only the runtime is installed.
Reference: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Field(NamedTuple):
    """A field of a message: all of its bytes, and what it holds."""

    whole: memoryview
    payload: memoryview


def fields(given: bytes | memoryview) -> Iterator[tuple[int, Field]]:
    """Yield the fields of a protobuf message with their numbers.

    Raises:
        ValueError: If it is none.
    """
    view, at = memoryview(given), 0
    while at < len(view):
        start = at
        tag, at = varint(view, at)
        number, kind = tag >> 3, tag & 7
        held = at
        if kind == 0:
            _, at = varint(view, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, held = varint(view, at)
            at = held + length
        else:
            raise ValueError(f"a field of wire type {kind}")
        if number == 0 or at > len(view):
            raise ValueError("a field that does not fit")
        yield number, Field(view[start:at], view[held:at])


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it.

    Raises:
        ValueError: If there is none.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")


def message(number: int, payload: bytes) -> bytes:
    """Return a field that holds bytes."""
    return _as_varint(number << 3 | 2) + _as_varint(len(payload)) + payload


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def entry(pair: memoryview) -> tuple[str, str]:
    """Return key and value of an entry of metadata."""
    found = {number: text_of(field.payload) for number, field in fields(pair)}
    return found.get(1, ""), found.get(2, "")


def text_of(payload: memoryview) -> str:
    """Return what a field of text says; bytes that are none are replaced."""
    return bytes(payload).decode(errors="replace")

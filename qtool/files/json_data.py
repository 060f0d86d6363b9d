"""JSON, read in one way: its size, depth and number of values are known before it is believed.

NaN and infinite numbers, a key written twice and halves of characters are no JSON here.
"""

import json
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Protocol, TypeVar

from qtool.errors import InputError
from qtool.files.reading import read_bounded

MOST_BYTES = 64 * 2**20
MOST_VALUES = 2_000_000  # and so at most 0.5 GB of Python's objects
DEEPEST = 64  # sections inside each other

T_co = TypeVar("T_co", covariant=True)


class Kind(Protocol[T_co]):
    """What turns JSON into values of one type, as pydantic's TypeAdapter does."""

    def validate_json(self, data: str, /, *, strict: bool) -> T_co:
        """Return what a text says."""
        ...


def parse_json(text: str, *, most_values: int = MOST_VALUES) -> object:
    """Return the data of a JSON text, in time and memory that its length and `most_values` bound.

    Raises:
        ValueError: If it is no JSON, too long, too deep, or has more values; says which and where.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} characters")
    # each value but the first stands behind one of these, if not all of these before a value
    if 1 + sum(map(text.count, ",[{")) > most_values:
        raise ValueError(f"more than {most_values:,} values")
    try:
        data: object = json.loads(
            text,
            parse_constant=_no_number,
            parse_float=_finite,
            object_pairs_hook=_each_key_once,
        )
    except RecursionError:
        raise ValueError(f"sections more than {DEEPEST} deep") from None
    _refuse_depth_and_halves(data, halves="\\ud" in text or "\\uD" in text)
    return data


def typed_json(kind: Kind[T_co], text: str) -> T_co:
    """Return what a JSON text says, as a type has it: a number is no text, and 1 is not true.

    Raises:
        ValueError: As `parse_json`, and where it is not of that type.
    """
    parse_json(text)
    return kind.validate_json(text, strict=True)


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:40]!r} is written twice")
    return made


def _refuse_depth_and_halves(data: object, *, halves: bool) -> None:
    """Check how deep sections lie, and that texts have no half of a character, where some may."""
    level: list[object] = [data]
    depth = 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"sections more than {DEEPEST} deep")
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
                if halves:
                    _refuse_halves(value)
            elif isinstance(value, list):
                below += value
            elif halves and isinstance(value, str):
                _refuse_halves([value])
        level, depth = below, depth + 1


def _refuse_halves(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("a text has half of a character (a lone surrogate)") from None


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON file that a run wrote.

    Raises:
        InputError: If it is missing or no JSON object.
    """
    data = _parsed(path, _text(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no JSON object")
    return data


def read_json_lines(path: Path) -> list[object]:
    """Read a file of JSON values, each on a line.

    Raises:
        InputError: If it is missing or a line is no JSON.
    """
    text, found, left = _text(path), list[object](), MOST_VALUES
    for number, line in enumerate(text.splitlines(), start=1):
        found.append(_parsed(path, line, f", line {number}", left))
        left -= 1 + sum(map(line.count, ",[{"))
    return found


def _text(path: Path) -> str:
    try:
        return read_bounded(path, MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error


def _parsed(path: Path, text: str, place: str = "", most: int = MOST_VALUES) -> object:
    try:
        return parse_json(text, most_values=most)
    except ValueError as error:
        raise InputError(f"{path}{place}: cannot be read as JSON: {error}") from error

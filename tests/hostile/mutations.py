"""What is done to bytes and to plain data; all of it by a generator of random numbers."""

from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

# what stands where something else was: the ends of number formats, and every other type
ATOMS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 9, 64, 2**31 - 1, 2**31, 2**63, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1e-9, 1e308, 1e-320, 5e-324, float("nan"), float("inf")),
    *(
        "",
        " ",
        "none",
        "null",
        "nan",
        "1",
        "../x",
        "/",
        "a" * 300,
        "é\U0001f600",
        "\x1b[31m",
        "[/x]",
    ),
    *("[/x]", [], [[]], [None], [1, 2], ["a"], [0.5, 0.1], {}, {"a": {}}, {"name": None}, {1: 2}),
    *({"name": "linear"}, {"name": "linear", "start": 1, "stop": float("nan")}, {"name": ["a"]}),
    *("linear", "cosine", "adam", "sgd", "learned", "absmax", "relu", "lenet5", "digits", "mse"),
    *("straight_through", "identity", "per_tensor", "unsigned", "mid_rise", "ceil", "*", "conv1"),
]
_SPECIAL = b"&*!|>%@`'\"{}[],:#?-~\x00\x07\t\n\x1b\xff\xc3"


def changed_bytes(data: bytes, random: Random) -> bytes:
    """Return bytes with one to four accidents: flipped, cut, doubled, moved or overwritten."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        start = random.randrange(len(made) + 1)
        length = min(random.choice((1, 1, 2, 4, 8, 64, 1024)), len(made) - start)
        kind = random.randrange(8)
        if kind == 0 and len(made) > start:
            made[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            del made[start : start + length]
        elif kind == 2:
            made[start:start] = made[start : start + length]
        elif kind == 3:
            made[start : start + length] = random.randbytes(length)
        elif kind == 4:
            made[start:start] = bytes([random.choice(_SPECIAL)])
        elif kind == 5:
            made[start : start + length] = bytes([random.choice((0, 0x7F, 0xFF))]) * length
        elif kind == 6 and random.random() < 0.3:
            del made[start:]
        else:
            other = random.randrange(len(made) + 1)
            made[start : start + length] = made[other : other + length]
    return bytes(made)


def changed_lines(text: str, random: Random) -> str:
    """Return a text with a line doubled, taken away, moved, or set in or out."""
    lines = text.splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 2))):
        place, other = random.randrange(len(lines)), random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0:
            lines.insert(other, lines[place])
        elif kind == 1 and len(lines) > 1:
            del lines[place]
        elif kind == 2:
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == 3:
            lines[place] = f"  {lines[place]}"
        else:
            lines[place] = lines[place].removeprefix("  ")
    return "".join(lines)


def changed_data(data: Any, random: Random, atoms: list[Any] | None = None) -> Any:
    """Return a copy of plain data with one to three places changed."""
    made = deepcopy(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        made = _changed_once(made, random, atoms or ATOMS)
    return made


def _changed_once(data: Any, random: Random, atoms: list[Any]) -> Any:
    places: list[tuple[Any, Any]] = []
    walk(data, places)
    if not places:
        return random.choice(atoms)
    section, key = random.choice(places)
    value = section[key]
    kind = random.randrange(9)
    if kind <= 3:
        section[key] = deepcopy(random.choice(atoms))
    elif kind == 4:
        del section[key]
    elif kind == 5 and isinstance(section, dict):
        section[_misspelt(key, random)] = section.pop(key)
    elif kind == 6:
        other, its = random.choice(places)
        section[key] = deepcopy(other[its])
    elif kind == 7:
        section[key] = random.choice((lambda v: [v], lambda v: {"name": v}, lambda v: [v, v]))(
            value
        )
    elif isinstance(value, int | float) and not isinstance(value, bool):
        section[key] = random.choice((-value, value * 2, value / 3, value + 1, str(value)))
    else:
        section[key] = deepcopy(random.choice(atoms))
    return data


def walk(data: Any, places: list[tuple[Any, Any]]) -> None:
    """Add every place in nested data, as what holds it and its key there."""
    keys: Any = data if isinstance(data, dict) else range(len(data)) if _is_list(data) else ()
    for key in keys:
        places.append((data, key))
        walk(data[key], places)


def _is_list(data: Any) -> bool:
    return isinstance(data, list)


def _misspelt(key: Any, random: Random) -> Any:
    changes: list[Callable[[str], Any]] = [
        lambda k: k + "s",
        lambda k: k[1:],
        lambda k: k.upper(),
        lambda k: 7,
        lambda k: "a" * 300,
        lambda k: f"\x1b[31m{k}",
    ]
    return random.choice(changes)(str(key))

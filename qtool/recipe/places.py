"""Plain data of a recipe by dotted places, such as quantization.overrides.0.weights.

A number in a place picks an item of a list. Data are only read here: what is changed is a copy.
"""

from collections.abc import Mapping


def at(data: object, place: str) -> object:
    """Return what stands at a place, None where there is nothing."""
    for part in place.split("."):
        if isinstance(data, list):
            there = part.isdecimal() and int(part) < len(data)
            data = data[int(part)] if there else None
        else:
            data = data.get(part) if isinstance(data, dict) else None
    return data


def section_at(data: object, place: str) -> dict[str, object]:
    """Return a copy of the section at a place, {} where there is none."""
    found = at(data, place)
    return dict(found) if isinstance(found, dict) else {}


def put(data: Mapping[str, object], values: Mapping[str, object]) -> dict[str, object]:
    """Return the data with other values at places; a section on the way that is missing is made.

    Args:
        data: stays as it is.
        values: place -> what is to stand there.
    """
    made = dict(data)
    for place, value in values.items():
        key, _, inner = place.partition(".")
        made[key] = _put(made.get(key), inner, value)
    return made


def _put(data: object, place: str, value: object) -> object:
    if not place:
        return value
    if isinstance(data, list):
        key, _, inner = place.partition(".")
        index = int(key)
        return [*data[:index], _put(data[index], inner, value), *data[index + 1 :]]
    return put(data if isinstance(data, dict) else {}, {place: value})

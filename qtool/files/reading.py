"""Files that others may have damaged: errors name the file and say what is wrong with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import InputError


@contextmanager
def intact(path: Path, what: str) -> Iterator[None]:
    """Turn the errors that wrong contents of a file cause into one that names the file.

    Args:
        path: of the file whose contents are used inside.
        what: goes wrong, such as "its metadata is damaged".

    Raises:
        InputError: In place of what Python or torch say of the contents.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        else:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(f"{path}: {what}: {reason}") from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON file that a run wrote.

    Raises:
        InputError: If it is missing or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no JSON object")
    return data


def read_json_lines(path: Path) -> list[object]:
    """Read a file of JSON values, each on a line.

    Raises:
        InputError: If it is missing or a line is no JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error

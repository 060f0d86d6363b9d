"""What `--arm` and `--tune` say: keys of a recipe and values, read as the recipe's YAML is."""

from collections.abc import Iterator

import yaml

from qtool.errors import InputError
from qtool.files.yaml_data import parse_yaml
from qtool.problems import brief

SHORT = {"learning_rate": "training.learning_rate"}
_OPENS, _CLOSES, _QUOTES = "[{", "]}", "'\""


def assignments_of(text: str, said: str) -> dict[str, object]:
    """Return key -> value from `key=value, key=value`; commas in brackets or quotes do not part.

    Args:
        text: none, one or several.
        said: the option and what it names, for messages.

    Raises:
        InputError: If a part is no `key=value`, a key stands twice, or a value is not YAML.
    """
    found: dict[str, object] = {}
    for part in _parts(text):
        key, value = split_assignment(part, said, "key=value")
        if key in found:
            raise InputError(f"{said}: {key} stands there twice")
        found[key] = _yaml(value, f"{said}: {key}")
    return found


def split_assignment(text: str, said: str, form: str) -> tuple[str, str]:
    """Return a whole key, and the text after its `=`.

    Raises:
        InputError: If there is none; says the form that is right.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or not value.strip():
        raise InputError(f"{said}: {brief(text.strip())!r} is no {form}")
    if key == "seed":
        raise InputError(f"{said}: seed is not of an arm: all have the same; give --seeds")
    return SHORT.get(key, key), value.strip()


def values_of(text: str, said: str) -> list[object]:
    """Return the values of a list such as `0.3x,1x,3x` or `{name: cosine, start: 1},0.1`.

    Raises:
        InputError: If a value is missing, or not YAML.
    """
    return [_yaml(part, said) for part in _parts(text)]


def _parts(text: str) -> Iterator[str]:
    """Yield what commas part, outside of brackets and quotes; nothing of an empty text."""
    depth, quote, start = 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        elif letter in _OPENS + _CLOSES:
            depth += 1 if letter in _OPENS else -1
        elif letter == "," and depth == 0:
            yield text[start:place].strip()
            start = place + 1
    if start or text.strip():
        yield text[start:].strip()


def _yaml(text: str, said: str) -> object:
    if not text:
        raise InputError(f"{said}: a value is missing between two commas, or at an end")
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{said}: {brief(text)!r} is not YAML: {problem}") from error

"""What a shell offers where TAB is pressed: names, and keys of recipes with what they take.

Nothing heavier than a file of names is read. `qtool --install-completion` tells the shell.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qtool.known import Family, known_names

if TYPE_CHECKING:
    from qtool.recipe.early import Schema

Completion = Callable[[str], list[str]]
BETWEEN = ","  # names in a list


def one_of(words: Iterable[str]) -> Completion:
    """Return what completes one of some words."""
    known = list(words)

    def complete(incomplete: str) -> list[str]:
        return beginning(incomplete, known)

    return complete


def listed(family: Family) -> Completion:
    """Return what completes the last name of a list such as relu,identity."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(BETWEEN)
        taken = before.split(BETWEEN)
        left = [name for name in known_names(family) if name not in taken]
        return [f"{before}{comma}{name}" for name in beginning(last, left)]

    return complete


def beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    """Return the words that begin with what was typed."""
    return [word for word in words if word.startswith(incomplete)]


def assignment(incomplete: str) -> list[str]:
    """Complete what `--set` takes: key=, and then the words that the key takes."""
    from qtool.recipe.early import sections

    keys = dict(_keys(sections(), ""))
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in beginning(key, keys)]
    return [f"{key}={word}" for word in beginning(value, keys.get(key, []))]


def of_data(incomplete: str) -> list[str]:
    """Complete what `--set` takes where only data may be given."""
    return [word for word in assignment(incomplete) if word.startswith("data.")]


def shipped_names(incomplete: str) -> list[str]:
    """Complete the name of a recipe that ships."""
    from qtool.start.shipped import shipped

    return beginning(incomplete, shipped())


def _keys(schema: "Schema", inside: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each key of a section and of those in it, with the words that it takes."""
    for key, given in schema.get("properties", {}).items():
        ways = [given, *given.get("anyOf", [])]
        named = schema.get("named") if key == "name" else None
        words = [word for way in ways for word in _words(way)]
        inner = [way for way in ways if "properties" in way]
        if not inner:
            yield f"{inside}{key}", words if named is None else known_names(named)
        for way in inner:
            yield from _keys(way, f"{inside}{key}.")


def _words(schema: "Schema") -> Sequence[str]:
    if "family" in schema:
        return known_names(schema["family"])
    if schema.get("type") == "boolean":
        return ["true", "false"]
    return schema.get("enum", [])

"""What is wrong with what a user wrote, in words: where, what, and what would be right."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import isfinite
from reprlib import Repr
from typing import TYPE_CHECKING

from qtool.errors import RecipeError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails  # who only reads messages need not load pydantic

SHOWN = 60  # characters of a wrong value in a message
MOST = 20  # problems in a message
LONGEST = 200  # characters of a place or a word in a message
_BRIEF = Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = SHOWN

Problem = tuple[str, str]  # (dotted place, what is wrong there)


class ProblemsError(ValueError):
    """Several problems found by one validator, each with its place inside the section."""

    def __init__(self, found: list[Problem]) -> None:
        super().__init__("; ".join(f"{place}: {why}" for place, why in found))
        self.found = found


def report(source: str, found: list[Problem]) -> RecipeError:
    """Return the error that lists every problem found in `source`, the first MOST where many."""
    count = "1 problem" if len(found) == 1 else f"{len(found):,} problems"
    lines = [f"  {brief(place)}: {why}" if place else f"  {why}" for place, why in found[:MOST]]
    if len(found) > MOST:
        lines.append(f"  and {len(found) - MOST:,} more")
    return RecipeError("\n".join([f"{source}: {count}", *lines]))


def brief(key: object) -> str:
    """Return a key as text, cut short where it is long."""
    word = str(key)
    return word if len(word) <= LONGEST else f"{word[:LONGEST]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean x?' for a near miss, else the list of what is known."""
    known = list(known)
    if len(str(word)) <= LONGEST:
        alike = [each for each in known if each.lower() == str(word).lower()]
        if close := alike or get_close_matches(str(word), known, n=1):
            return f"; did you mean {close[0]}?"
    return f"; choose one of: {', '.join(known)}"


def unknown(family: str, name: str, known: Iterable[str]) -> str:
    """Return what is wrong with a name that is none of its family."""
    hint = "; a number is written without quotes" if is_number(name) else did_you_mean(name, known)
    return f"unknown {family} {shown(name)}{hint}"


def no_schedule(name: str, known: Iterable[str]) -> str:
    """Return what is wrong with a word where a schedule may stand, or a number."""
    why = unknown("schedule", name, known)
    return f"{why}, or give a number" if "choose one of" in why else why


def is_number(text: object) -> bool:
    """Tell whether something is the text of a number, as one in quotes is."""
    try:
        return isinstance(text, str) and isfinite(float(text))
    except ValueError:
        return False


def either(words: Sequence[str]) -> str:
    """Return words as a choice between them: a, b or c."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: object) -> str:
    """Return a value as a recipe would write it, cut short where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # Python refuses to print a number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _quotes(kind: str, value: object) -> str:
    """Return what quotes have to do with a value of a wrong kind, "" if nothing.

    YAML reads no and off as false, and what looks like a number as one.
    """
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "; put it in quotes, as it was written, for text"
    if kind in ("int_type", "float_type", "bool_type") and is_number(value):
        return "; leave out the quotes"
    return ""


def plain_message(error: "ErrorDetails") -> str:
    """Turn one pydantic error into what is wrong, in words that need no pydantic."""
    limit = error.get("ctx", {})
    value = shown(error["input"])
    match error["type"]:
        case "less_than_equal":
            return f"{value} is more than {limit['le']}"
        case "greater_than_equal":
            return f"{value} is less than {limit['ge']}"
        case "greater_than":
            return f"{value} is not more than {limit['gt']}"
        case "less_than":
            return f"{value} is not less than {limit['lt']}"
        case "missing":
            return "missing"
        case "literal_error":
            choices = limit["expected"].replace(" or ", ", ").replace("'", "").split(", ")
            return f"unknown choice {value}{did_you_mean(str(error['input']), choices)}"
        case "value_error":
            return str(limit["error"])
        case "finite_number":
            return f"{value} is not a finite number"
        case "invalid_key":
            return "a key must be text"
        case kind if kind.endswith("_type"):
            wanted = {
                "int_type": "a whole number",
                "float_type": "a number",
                "string_type": "text",
                "bool_type": "true or false",
                "list_type": "a list",
                "dict_type": "a mapping",
                "model_type": "a mapping of keys",
                "model_attributes_type": "a mapping of keys",
            }.get(kind, kind.removesuffix("_type"))
            return f"{value} is not {wanted}{_quotes(kind, error['input'])}"
    return f"{error['msg']}, got {value}"

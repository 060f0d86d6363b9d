"""What people see: messages, tables and progress, on standard error; results on standard output.

What is shown may come from files that strangers made. It is text: never markup, and without the
characters that move the cursor, change colours or turn the direction of a line. On a terminal lines
break between words; elsewhere they do not break at all. Where NO_COLOR is set, nothing but text and
carriage returns is sent (https://no-color.org).
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qtool.word_table import WordTable, filled

# C0 but tab and line feed, DEL, C1, marks and overrides of direction, line and paragraph
# separators, and halves of surrogate pairs, which no terminal can be sent.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


ENDLESS = 10_000  # columns of what is no terminal: rows of a table stay lines, to be searched
REDRAWN = 0.1  # seconds after which a status is drawn again
_COMMAND = re.compile(r"(.*: )(qtool \S+ .+)")


def without_colours() -> bool:
    """Tell whether people asked for text without colours."""
    return bool(os.environ.get("NO_COLOR"))


class _Screen(Console):
    """Standard error; once nothing can be written there any more, qtool goes on in silence."""

    def on_broken_pipe(self) -> None:
        """Say nothing any more, where rich would end the process."""
        self.quiet = True


C = TypeVar("C", bound=Console)


def _opened(kind: type[C], *, stderr: bool) -> C:
    """Return a console without colours where nobody wants them, and without an edge off screens."""
    colours = None if without_colours() else "auto"
    made = kind(stderr=stderr, highlight=False, soft_wrap=True, color_system=colours)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = ENDLESS
    return made


SCREEN = _opened(_Screen, stderr=True)


class Status:
    """A line at the foot of a terminal, drawn again and again in place; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown, self._drawn = 0, 0.0

    def is_due(self) -> bool:
        """Tell whether it would be seen, and is old enough to be drawn again."""
        late = time.monotonic() - self._drawn >= REDRAWN
        return late and SCREEN.is_terminal and not SCREEN.quiet

    def show(self, parts: Sequence[str]) -> None:
        """Show as many parts as there is room for, from the first on."""
        room, text = SCREEN.width - 1, ""
        for part in map(printable, parts):
            longer = f"{text}  {part}" if text else part
            if cell_len(longer) > room:
                break
            text = longer
        self._send(text + " " * max(0, self._shown - cell_len(text)))
        self._shown, self._drawn = cell_len(text), time.monotonic()

    def clear(self) -> None:
        """Take the line away, for another one to stand there."""
        if self._shown:
            self._send(" " * self._shown)
            self._send("")
        self._shown, self._drawn = 0, 0.0

    def _send(self, text: str) -> None:
        with _while_there(SCREEN):
            SCREEN.file.write(f"\r{text}")
            SCREEN.file.flush()


STATUS = Status()


def printable(text: object) -> str:
    """Return a text without the characters that a terminal obeys in place of showing them.

    Lines stay lines: messages have several.
    """
    return _CONTROL.sub("", str(text))


@contextmanager
def _while_there(console: Console) -> Iterator[None]:
    """Let a terminal go away, or its disk be full; a result that cannot be shown is an error."""
    try:
        yield
    except OSError:
        if console is not SCREEN:
            raise
        SCREEN.quiet = True


def say(message: str, *, on_stdout: bool = False) -> None:
    """Show one line: a result on standard output, anything else on standard error."""
    _as_it_is(_console(on_stdout=on_stdout), message)


_SAID: ContextVar[set[str] | None] = ContextVar("_SAID", default=None)


@contextmanager
def saying_once() -> Iterator[None]:
    """Let `note` show each note once while inside, however many stages of the work say it."""
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def note(message: str) -> None:
    """Say what is known of the data or the network, which several stages of one command may say."""
    said = _SAID.get()
    if said is None or message not in said:
        say(message)
    if said is not None:
        said.add(message)


def warn(message: str) -> None:
    """Say something that must not be overlooked, on standard error."""
    _as_it_is(SCREEN, f"WARNING: {message}", style="bold red")


def wrapped(text: str, width: int) -> str:
    """Return a text whose lines break between words, and go on further in.

    A command at the end of a line stays one that can be copied: it goes on after a backslash.
    """
    return "\n".join(line for each in text.split("\n") for line in _wrapped(each, width))


def _wrapped(line: str, width: int) -> list[str]:
    if cell_len(line) <= width:
        return [line]
    if found := _COMMAND.fullmatch(line):
        before, command = found.groups()
        *lines, last = filled(command, width - 2, "  ", "    ")
        return [*_wrapped(before.rstrip(), width), *(f"{each} \\" for each in lines), last]
    inset = line[: len(line) - len(line.lstrip())]
    return filled(line, width, inset, f"{inset}  ")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> WordTable:
    """Return a table; a column whose name starts with `#` is right-aligned."""
    named = any(column.removeprefix("#") for column in columns)
    made = WordTable(_text(title), show_header=named)
    for column in columns:
        justify = "right" if column.startswith("#") else "left"
        name = column is columns[0] and named  # the others give way to what a row is about
        heading = _text(column.removeprefix("#"))
        made.add_column(heading, justify=justify, overflow="fold", no_wrap=name)
    for row in rows:
        made.add_row(*[_text(cell) for cell in row])
    return made


def show(made: Table, *, on_stdout: bool = False) -> None:
    """Print a table: a result on standard output, anything else on standard error."""
    console = _console(on_stdout=on_stdout)
    STATUS.clear()
    with _while_there(console):
        console.print(made, markup=False)


@contextmanager
def say_nothing(*, when: bool) -> Iterator[None]:
    """Show nothing on standard error while inside, where another process says the same."""
    before, SCREEN.quiet = SCREEN.quiet, when or SCREEN.quiet
    try:
        yield
    finally:
        SCREEN.quiet = before


def _as_it_is(console: Console, message: str, style: str | None = None) -> None:
    text = printable(message)
    if console.is_terminal:
        text = wrapped(text, console.width)
    STATUS.clear()
    with _while_there(console):
        console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)


def _text(cell: object) -> Text:
    return Text(printable(cell))


def _console(*, on_stdout: bool) -> Console:
    return _opened(Console, stderr=False) if on_stdout else SCREEN

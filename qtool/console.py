"""What people see: messages, tables and progress, on standard error; results on standard output.

What is shown may come from files that strangers made. It is text: never markup, and without the
characters that move the cursor, change colours or turn the direction of a line.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# C0 but tab and line feed, DEL, C1, marks and overrides of direction, line and paragraph
# separators, and halves of surrogate pairs, which no terminal can be sent.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class _Screen(Console):
    """Standard error; once nothing can be written there any more, qtool goes on in silence."""

    def on_broken_pipe(self) -> None:
        """Say nothing any more, where rich would end the process."""
        self.quiet = True


SCREEN = _Screen(stderr=True, highlight=False, soft_wrap=True)


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


def warn(message: str) -> None:
    """Say something that must not be overlooked, on standard error."""
    _as_it_is(SCREEN, f"WARNING: {message}", style="bold red")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table; a column whose name starts with `#` is right-aligned."""
    named = any(column.removeprefix("#") for column in columns)
    made = Table(title=_text(title), title_justify="left", title_style="bold", show_header=named)
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
    with _while_there(console):
        console.print(printable(message), style=style, markup=False, emoji=False, soft_wrap=True)


def _text(cell: object) -> Text:
    return Text(printable(cell))


def _console(*, on_stdout: bool) -> Console:
    return Console(highlight=False) if on_stdout else SCREEN

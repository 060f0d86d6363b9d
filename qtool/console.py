"""What people see: messages, tables and progress, on standard error; results on standard output."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SCREEN = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str, *, on_stdout: bool = False) -> None:
    """Show one line: a result on standard output, anything else on standard error."""
    _console(on_stdout=on_stdout).print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Say something that must not be overlooked, on standard error."""
    SCREEN.print(f"WARNING: {message}", style="bold red", markup=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table; a column whose name starts with `#` is right-aligned."""
    named = any(column.removeprefix("#") for column in columns)
    made = Table(title=title, title_justify="left", title_style="bold", show_header=named)
    for column in columns:
        justify = "right" if column.startswith("#") else "left"
        name = column is columns[0] and named  # the others give way to what a row is about
        heading = column.removeprefix("#")
        made.add_column(heading, justify=justify, overflow="fold", no_wrap=name)
    for row in rows:
        made.add_row(*[str(cell) for cell in row])
    return made


def show(made: Table, *, on_stdout: bool = False) -> None:
    """Print a table: a result on standard output, anything else on standard error."""
    _console(on_stdout=on_stdout).print(made, markup=False)


def _console(*, on_stdout: bool) -> Console:
    return Console(highlight=False) if on_stdout else SCREEN

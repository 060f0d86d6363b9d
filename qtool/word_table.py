"""Tables whose cells break between words, and which are lists where a screen is too narrow."""

import re
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

FRAME = 3  # columns of a screen that a column's frame takes, and one for the last
INSET = "  "
BETWEEN_WORDS = re.compile(r"\s+(?!%)")  # a number and its sign stay together


class WordTable(Table):
    """A table of texts.

    Attributes:
        heading: stands above it, and is never broken.
    """

    def __init__(self, heading: Text, *, show_header: bool) -> None:
        """Begin a table; without a header, its rows are names and values."""
        super().__init__(show_header=show_header)
        self.heading = heading
        self.heading.no_wrap, self.heading.overflow = True, "ignore"
        if not self.heading.style:
            self.heading.style = "bold"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the heading, then the table, or a list where words would break in it."""
        if self.heading.plain:
            yield self.heading
        widths = self._widths(options.max_width - FRAME * len(self.columns) - 1)
        if widths is None:
            yield from self._as_list(options.max_width)
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _widths(self, room: int) -> list[int] | None:
        """Return how wide columns are, None where not all words fit."""
        least = [_longest(column, whole=bool(column.no_wrap)) for column in self.columns]
        natural = [_longest(column, whole=True) for column in self.columns]
        if sum(natural) <= room:
            return natural
        spare = room - sum(least)
        if spare < 0:
            return None
        wanted = [more - less for more, less in zip(natural, least, strict=True)]
        given = dict.fromkeys(range(len(wanted)), 0)
        for left, index in enumerate(sorted(given, key=wanted.__getitem__)):
            given[index] = min(wanted[index], spare // (len(wanted) - left))  # the least first
            spare -= given[index]
        return [less + given[index] for index, less in enumerate(least)]

    def _as_list(self, width: int) -> Iterator[Text]:
        """Yield each row as lines: what it is about, then its other cells by their names."""
        names = [_plain(column.header) for column in self.columns]
        cells = [list(column.cells) for column in self.columns]
        for row in zip(*cells, strict=True):
            first, *others = map(_plain, row)
            if not self.show_header:
                yield _line(f"{first}: {' '.join(others)}", width, "")
                continue
            yield Text(first, style="bold", no_wrap=True, overflow="ignore")
            for name, cell in zip(names[1:], others, strict=True):
                if cell:
                    yield from (
                        _line(f"{name}: {part}" if not place else part, width, INSET)
                        for place, part in enumerate(cell.split("\n"))
                    )


def _longest(column: Column, *, whole: bool) -> int:
    """Return the width of the longest line of a column, or of its longest word."""
    texts = [_plain(column.header), *map(_plain, column.cells)]
    between = re.compile("\n") if whole else BETWEEN_WORDS
    return max((cell_len(part) for text in texts for part in between.split(text)), default=0)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _line(text: str, width: int, inset: str) -> Text:
    lines = filled(text, width, inset, inset + INSET)
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def filled(text: str, width: int, first: str, further: str) -> list[str]:
    """Return the lines of a text, broken between words; one that is too long has its own line.

    Args:
        text: of words.
        width: of the screen, in columns.
        first: what the first line begins with.
        further: what the others begin with.
    """
    lines, line = [], first
    for word in text.split():
        longer = f"{line} {word}" if line.strip() else f"{line}{word}"
        if cell_len(longer) > width and line.strip():
            lines.append(line)
            longer = f"{further}{word}"
        line = longer
    return [*lines, line]

"""Tables of pages, and those whose cells are coloured by what they hold: heat maps that say it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

STRONGEST = 0.62  # of a cell's colour, so that ink stays legible on it


@dataclass(frozen=True)
class Column:
    """A column: its name, and "n" where it holds numbers, "words" where it holds sentences."""

    name: str
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell says, and how strong its colour is, 0..1; None for no colour."""

    text: str
    heat: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is what the row is about."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Heat:
    """One column of a heat map: a value for each row, None where there is none, and its words.

    Attributes:
        least, most: values without colour and with the strongest; None for those of the column.
    """

    name: str
    values: Sequence[float | None]
    texts: Sequence[str] = field(default_factory=list)
    least: float | None = None
    most: float | None = None

    def cells(self) -> list[Cell]:
        """Return the column, from light to strong."""
        known = [value for value in self.values if value is not None]
        least = self.least if self.least is not None else min(known, default=0.0)
        most = self.most if self.most is not None else max(known, default=0.0)
        cells = []
        for value, text in zip(self.values, self.texts, strict=True):
            if value is None:
                cells.append(Cell(text, kind="none"))
            else:
                share = (value - least) / (most - least) if most > least else 0.0
                cells.append(Cell(text, round(STRONGEST * min(1.0, max(0.0, share)), 3)))
        return cells


def plain(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Table:
    """Return a table; a column whose name starts with `#` holds numbers, with `~` sentences.

    Columns of nothing but dashes are left out.
    """
    kinds = {"#": "n", "~": "words"}
    told = [[str(cell) for cell in row] for row in rows]
    kept = [k for k in range(len(columns)) if not k or any(row[k] not in ("", "-") for row in told)]
    names = [columns[k] for k in kept]
    named = [Column(name.lstrip("#~"), kinds.get(name[:1], "")) for name in names]
    return Table(named, [[Cell(row[k]) for k in kept] for row in told], caption)


def heat_map(what: str, names: Sequence[str], columns: Sequence[Heat], caption: str = "") -> Table:
    """Return a table of coloured cells: a row for each name, columns with no value left out."""
    shown = [column for column in columns if any(value is not None for value in column.values)]
    rows = zip(names, *(column.cells() for column in shown), strict=True)
    return Table(
        [Column(what), *(Column(column.name, "n") for column in shown)],
        [[Cell(name), *cells] for name, *cells in rows],
        caption,
        "heat",
    )

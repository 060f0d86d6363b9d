"""Tables of files and labels, as CSV: their columns, and which file each row names.

What a table means is found out where it says so by itself, and refused where it does not.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qtool.data.layouts import HALVES, listed
from qtool.data.root import DataRoot
from qtool.errors import DataError
from qtool.files.reading import read_bounded
from qtool.images.files import SUFFIXES, images_in

MOST_BYTES = 256 * 2**20
SAMPLE = 50  # rows by which a column of files is known
DELIMITERS = ",;\t|"
KIND_OF = {name: kind for kind, names in HALVES.items() for name in names}


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        path: of the file.
        columns: names; numbers from 1 where the file has none.
        rows: cells without spaces around them, as many as columns.
        first: number of the line that the first row is in.
    """

    path: Path
    columns: list[str]
    rows: list[list[str]]
    first: int

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def known(self, name: str, key: str) -> str:
        """Return a column's name, which `data.KEY` gives.

        Raises:
            DataError: If there is none of it.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path}: data.{key}: no column {name}; there are {listed(self.columns)}"
            )
        return name


def read_table(path: Path) -> Table:
    """Return a CSV file's rows; commas, semicolons, tabulators or bars stand between its cells.

    The first line names the columns, unless one of its cells ends like the name of an image file.

    Raises:
        DataError: If it is missing or no such table; names the line.
    """
    lines = _text_of(path).splitlines()
    if not any(lines):
        raise DataError(f"{path}: is empty; needed is a table of file and label")
    counts = {each: lines[0].count(each) for each in DELIMITERS}
    try:
        read = csv.reader(lines, delimiter=max(counts, key=lambda each: counts[each]), strict=True)
        rows = [[cell.strip() for cell in row] for row in read]
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    width = len(rows[0])
    if width < 2:
        raise DataError(f"{path}: has one column; needed are one of files and one of labels")
    for number, row in enumerate(rows, 1):
        if row and len(row) != width:
            raise DataError(f"{path}: line {number} has {len(row)} cells, the first one {width}")
    named = not any(PurePosixPath(cell).suffix.lower() in SUFFIXES for cell in rows[0])
    columns = rows[0] if named else [str(place + 1) for place in range(width)]
    if double := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(f"{path}: {listed(double)}: more than one column is called so")
    body = [row for row in rows[1 if named else 0 :] if row]
    if not body:
        raise DataError(f"{path}: has no row beside the names of its columns")
    return Table(path, columns, body, 2 if named else 1)


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; data.file names a CSV file under data.root "
            "(or under --data-root, or the folder in the environment variable QTOOL_DATA)"
        )
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error


class ImageFiles:
    """The image files of a folder, by what tables call them."""

    def __init__(self, folders: Iterable[Path], allowed: DataRoot) -> None:
        """Look for files in folders, and in those below; nothing is read."""
        self._found: dict[str, Path | None] = {}  # None: several are called so
        self.count = 0
        for folder in dict.fromkeys(folders):
            paths = allowed.all_inside(images_in(allowed.inside(folder)))
            self.count = self.count or len(paths)
            for path in paths:
                within = path.relative_to(folder)
                self._add(within.as_posix(), path)
                self._add(within.with_suffix("").as_posix(), path)
        # a bare name may be that of a file in any folder, where one alone has it
        for path in {path for path in self._found.values() if path is not None}:
            self._add(f"//{path.name}", path)
            self._add(f"//{path.stem}", path)

    def _add(self, name: str, path: Path) -> None:
        known = self._found.setdefault(name, path)
        if known != path:
            self._found[name] = None

    def named(self, name: str) -> Path | None:
        """Return the file of a name: its path in a folder or its name alone, with suffix or not."""
        plain = PurePosixPath(name.replace("\\", "/"))
        for key in (plain.as_posix(), f"//{plain.name}"):
            if (path := self._found.get(key)) is not None:
                return path
        return None


def find_files_column(table: Table, files: ImageFiles) -> str:
    """Return the column whose first rows name most files.

    Raises:
        DataError: If none names files.
    """
    hits = {
        name: sum(files.named(cell) is not None for cell in table.column(name)[:SAMPLE])
        for name in table.columns
    }
    best = max(hits, key=lambda name: hits[name])
    if not hits[best]:
        raise DataError(
            f"{table.path}: no column names image files that are there; the first row says "
            f"{listed(table.rows[0])} (data.folder names the folder of images)"
        )
    return best


def find_split_column(table: Table, others: Sequence[str]) -> str | None:
    """Return the column, but for `others`, that says of each row train, val or test; None: none."""
    for name in table.columns:
        kinds = {KIND_OF.get(cell.lower()) for cell in table.column(name)}
        if name not in others and None not in kinds and len(kinds) > 1:
            return name
    return None

"""Image files whose classes a CSV says: one each, or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from qtool.data.bad_files import BadFiles, skip_unreadable
from qtool.data.layouts import classes_said, listed
from qtool.data.root import DataRoot
from qtool.data.sources import DataSource, FileSplit, make_source, split_files
from qtool.data.tables import (
    KIND_OF,
    ImageFiles,
    Table,
    find_files_column,
    find_split_column,
    read_table,
)
from qtool.errors import DataError

SEPARATORS = "|;, "  # of labels in a cell; the first that a column has
YES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}

Row = tuple[str, Path, tuple[str, ...]]  # where it stands, its file, its classes


def image_table(
    root: Path | DataRoot,
    *,
    file: str,
    folder: str = ".",
    validation_file: str | None = None,
    file_column: str | None = None,
    label_column: str | list[str] | None = None,
    split_column: str | None = None,
    labels: Literal["one", "several"] = "one",
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    bad_files: BadFiles = "refuse",
) -> DataSource:
    """Read image files under `root`/`folder` with the labels that a CSV says.

    Args:
        root: Folder of data sets.
        file: Path of the CSV under `root`, one row for each image.
        folder: Of the images, which rows name by their path in it, or beside the CSV, or by their
            name alone, with or without suffix.
        validation_file: A second CSV, of the images that judge; without it rows say so in a column
            of train, val and test, or a share of them is split off, the same one every time.
        file_column: Of the files; default: the one that names them.
        label_column: Of the labels, or the columns of 0 and 1 that are one for each class;
            default: what is left.
        split_column: Of train, val and test; default: the one that says so.
        labels: one: each image has one class. several: any number of them, in one cell (with | or
            ; or a comma or spaces between them), in rows of their own, or as 1 in columns of 0
            and 1. A loss for several labels is needed.
        validation_share: Share of the images set aside where qtool splits.
        bad_files: Files that are missing or cannot be read as images: refuse them all, by name, or
            skip: read every file beforehand, and leave them out.
    """
    allowed = DataRoot.of(root)
    where = allowed.named(file)
    reader = _Reader(
        allowed.named(folder), allowed, file_column, label_column, split_column, labels, bad_files
    )
    read = reader.read(where)
    others = None if validation_file is None else reader.read(allowed.named(validation_file))
    rows = read.rows["train"]
    judges = read.rows["validation"] if others is None else others.all_rows()
    notes = read.notes + (others.notes if others else [])
    names = read.classes or _sorted({name for _, _, classes in rows for name in classes})
    if not rows or not names:
        raise DataError(
            f"{where}: {'no row is of training' if not rows else 'no image has a class'}"
        )
    train = _split_of(rows, names, labels)
    unknown = sorted({name for *_, classes in judges for name in classes} - set(names))
    if unknown:
        raise DataError(f"{where}: {listed(unknown)} not among the classes of the training images")
    validation = _split_of(judges, names, labels) if judges else None
    notes.insert(0, classes_said(names))
    if bad_files == "skip":
        train, validation, said = skip_unreadable(train, validation)
        notes += said
    if validation is None:
        train, validation = split_files(train, validation_share, where)
        notes.append(
            f"{where} is split by a fixed seed: "
            f"{len(train):,} training and {len(validation):,} validation images"
        )
    elif lacking := train.used() - validation.used():
        notes.append(f"no validation image is {listed([names[n] for n in sorted(lacking)])}")
    return make_source(
        "image_table", train, validation, classes=len(names), note="\n".join(notes), names=names
    )


@dataclass
class _Read:
    """What a CSV says: rows of each half, classes where columns name them, and notes."""

    rows: dict[str, list[Row]]
    classes: list[str]
    notes: list[str]

    def all_rows(self) -> list[Row]:
        return [row for half in self.rows.values() for row in half]


@dataclass(frozen=True)
class _Reader:
    """Reads tables by the same rules."""

    folder: Path
    allowed: DataRoot
    file_column: str | None
    label_column: str | list[str] | None
    split_column: str | None
    labels: str
    bad_files: str

    def read(self, path: Path) -> _Read:
        """Return what a table says.

        Raises:
            DataError: If that is not clear, or a row is wrong; lists all rows that are.
        """
        table = read_table(path)
        files = ImageFiles([self.folder, path.parent], self.allowed)
        of_file = table.known(self.file_column, "file_column") if self.file_column else ""
        of_file = of_file or find_files_column(table, files)
        given = self.label_column or []
        given = [given] if isinstance(given, str) else given
        of_labels = [table.known(name, "label_column") for name in given]
        of_split = table.known(self.split_column, "split_column") if self.split_column else None
        of_split = of_split or find_split_column(table, [of_file, *of_labels])
        of_labels = of_labels or self._label_columns(table, [of_file, of_split])
        classes = of_labels if len(of_labels) > 1 else []
        labels_of = _by_columns(table, of_labels) if classes else self._by_cell(table, of_labels[0])
        rows, notes = self._rows(table, files, of_file, labels_of)
        halves = _halves(table, of_split, rows)
        said = f"files from column {of_file}, labels from {listed(of_labels)}"
        halved = {"train": [], "validation": [], "test": []}
        for row, kind in halves:
            halved[kind].append(row)
        test = halved.pop("test")
        if test and not halved["validation"]:
            halved["validation"], test = test, []
            notes.append(f"{path}: rows of test judge, for none are of validation")
        if test:
            notes.append(f"{path}: {len(test):,} rows of test are not used")
        return _Read(halved, classes, [f"{path}: {said}", *notes])

    def _label_columns(self, table: Table, taken: Sequence[str | None]) -> list[str]:
        rest = [name for name in table.columns if name not in taken]
        yes_or_no = [n for n in rest if {cell.lower() for cell in table.column(n)} <= set(YES)]
        if rest and (len(rest) == 1 or yes_or_no == rest):
            return rest
        raise DataError(
            f"{table.path}: which of {listed(rest)} are the labels? data.label_column says so"
            if rest
            else f"{table.path}: no column is left for the labels"
        )

    def _by_cell(self, table: Table, column: str) -> list[tuple[str, ...]]:
        cells = table.column(column)
        if self.labels == "one":
            return [(cell,) if cell else () for cell in cells]
        between = next((s for s in SEPARATORS if any(s in cell for cell in cells)), None)
        return [tuple(filter(None, map(str.strip, cell.split(between)))) for cell in cells]

    def _rows(
        self, table: Table, files: ImageFiles, of_file: str, labels_of: list[tuple[str, ...]]
    ) -> tuple[list[Row | None], list[str]]:
        """Return each row, None for one that adds nothing, and what is to be said of them."""
        problems: list[str] = []
        missing, double, found = list[str](), 0, dict[Path, int]()
        rows: list[Row | None] = []
        for place, (name, labels) in enumerate(zip(table.column(of_file), labels_of, strict=True)):
            rows.append(None)
            at = f"line {table.first + place}"
            if (path := files.named(name)) is None:
                missing.append(f"{at}: no image file {name}")
            elif self.labels == "one" and len(labels) != 1:
                has = f"has {listed(list(labels))}" if labels else "has no label"
                problems.append(f"{at}: {name} {has}; data.labels: several takes any number")
            elif path not in found:
                found[path] = place
                rows[-1] = (at, path, labels)
            else:
                double += 1
                first = rows[found[path]]
                assert first is not None
                if self.labels == "several":
                    both = dict.fromkeys(first[2] + labels)
                    rows[found[path]] = (*first[:2], tuple(both))
                elif first[2] != labels:
                    said = f"{labels[0]}, and in {first[0]} {first[2][0]}"
                    problems.append(f"{at}: {name} is {said}; data.labels: several takes both")
        if self.bad_files == "refuse":
            problems = missing + problems
        _raise_listed(table.path, problems)
        notes = []
        if missing and self.bad_files == "skip":
            notes.append(f"{table.path}: {len(missing):,} rows are left out: {listed(missing, 3)}")
        if double and self.labels == "one":
            notes.append(f"{table.path}: {double:,} rows repeat others and are left out")
        return rows, notes


def _by_columns(table: Table, columns: list[str]) -> list[tuple[str, ...]]:
    said = []
    for name in columns:
        cells = [cell.lower() for cell in table.column(name)]
        if wrong := [cell for cell in cells if cell not in YES]:
            raise DataError(f"{table.path}: column {name} holds {wrong[0]}; needed are 0 and 1")
        said.append([YES[cell] for cell in cells])
    return [
        tuple(name for name, yes in zip(columns, row, strict=True) if yes)
        for row in zip(*said, strict=True)
    ]


def _halves(table: Table, column: str | None, rows: list[Row | None]) -> list[tuple[Row, str]]:
    """Return the rows with what each is for."""
    cells = ["train"] * len(rows) if column is None else table.column(column)
    kinds = [KIND_OF.get(cell.lower()) for cell in cells]
    wrong = [
        f"line {table.first + place}: {column} is {cell or 'empty'}; needed is train, val or test"
        for place, (cell, kind) in enumerate(zip(cells, kinds, strict=True))
        if kind is None
    ]
    _raise_listed(table.path, wrong)
    return [(row, kind) for row, kind in zip(rows, kinds, strict=True) if row and kind]


def _split_of(rows: list[Row], names: list[str], labels: str) -> FileSplit:
    place = {name: index for index, name in enumerate(names)}
    paths = [path for _, path, _ in rows]
    if labels == "one":
        return FileSplit(paths, [place.get(classes[0], 0) for *_, classes in rows])
    targets = torch.zeros(len(rows), len(names))
    for row, (*_, classes) in enumerate(rows):
        targets[row, [place[name] for name in classes if name in place]] = 1
    return FileSplit(paths, targets)


def _sorted(names: set[str]) -> list[str]:
    """Return names in their order, whole numbers by their size."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _raise_listed(path: Path, problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - 100:,} more"] if len(problems) > 100 else []
        title = f"{path}: {len(problems):,} rows are wrong"
        raise DataError("\n  ".join([title, *problems[:100], *more]))

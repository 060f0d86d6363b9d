"""Results as CSV, for spreadsheets and plots: a line for each epoch of a run.

Null is an empty cell; a figure of each layer has a column for each of them, such as
`flip_ratio.conv1`. A line that lacks a figure has an empty cell there.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qtool.console import printable
from qtool.reports.results import EpochLine


def metrics_csv(history: Sequence[EpochLine]) -> str:
    """Return metrics.csv: what metrics.jsonl says, epoch by epoch."""
    return written([dict(_flat(line.to_json())) for line in history])


def written(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows under all keys that any of them has, each behind the one it stands behind."""
    kept = list(rows)
    columns: list[str] = []
    for row in kept:
        place = 0
        for key in row:
            if key not in columns:
                columns.insert(place, key)
            place = columns.index(key) + 1
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([printable(column) for column in columns])
    for row in kept:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return lines.getvalue()


def _flat(data: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted keys and values of sections inside each other."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _cell(value: object) -> str:
    return "" if value is None else printable(value)

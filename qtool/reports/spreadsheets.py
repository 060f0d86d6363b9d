"""Results as CSV, for spreadsheets and plots: a line for each epoch of a run, or for each arm.

Null is an empty cell; a figure of each layer has a column for each of them, such as
`flip_ratio.conv1`. A line that lacks a figure has an empty cell there.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qtool.console import printable
from qtool.reports.comparisons import ByArm, Comparison, Equivalence
from qtool.reports.results import EpochLine

MEASURES = [name for name, of in Equivalence.model_fields.items() if of.annotation == ByArm]


def metrics_csv(history: Sequence[EpochLine]) -> str:
    """Return metrics.csv: what metrics.jsonl says, epoch by epoch."""
    return written([dict(_flat(line.to_json())) for line in history])


def comparison_csv(result: Comparison | Equivalence) -> str:
    """Return what comparison.json says of each arm: its seeds, and its difference from the first.

    Of an equivalence also how alike its runs and custom's are, by arm and learning rate.
    """
    gaps = {each.arm: each.to_json() for each in result.differences}
    rows = []
    for arm in result.arms:
        row: dict[str, object] = {"arm": arm.name, "mean": arm.mean, "std": arm.std}
        row |= {"failed": arm.failed}
        row |= {f"seed_{s}": v for s, v in zip(result.seeds, arm.values, strict=False)}
        gap = {key: value for key, value in gaps.get(arm.name, {}).items() if key != "arm"}
        row |= {f"difference_{key}": value for key, value in gap.items() if key != "against"}
        row |= {key: gap[key] for key in ("against",) if key in gap}
        said = arm.to_json()
        row |= {k: v for k, v in said.items() if k not in ("name", *row) and _is_plain(v)}
        rows.append(row)
    if isinstance(result, Equivalence):
        alike = dict(_alike(result))
        rows = [row | alike.get(str(row["arm"]), {}) for row in rows]
    return written(rows)


def _alike(result: Equivalence) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the name of each arm at each rate, and its measures at the end of training."""
    measures = {key: value for key, value in result.to_json().items() if key in MEASURES}
    for place, rate in enumerate(result.learning_rates):
        for arm in result.weight_alignment_error:
            values: dict[str, object] = {"learning_rate": rate}
            values |= {key: by_arm[arm][place] for key, by_arm in measures.items()}
            yield f"lr-{rate:g}/{arm}", values


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


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _flat(data: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted keys and values of sections inside each other."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _cell(value: object) -> str:
    return "" if value is None else printable(value)

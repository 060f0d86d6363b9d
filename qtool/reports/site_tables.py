"""Values with quantizers, and operators that stay float, as tables for people."""

from collections import Counter
from collections.abc import Sequence

from qtool.console import say, show, table
from qtool.reports.inspections import SiteRow

SHOWN = 3  # readers that a cell has room for


def show_sites(rows: Sequence[SiteRow], *, on_stdout: bool = False) -> None:
    """Show each value with what makes and reads it, then what stays float and why."""
    placed = [row for row in rows if not row.why]
    hows = Counter(row.how for row in placed if row.how)
    usual = hows.most_common(1)[0][0] if hows else ""
    cells = [
        (row.site, _made(row), _some(row, row.read_by), row.grid, row.scale, _note(row, usual))
        for row in placed
    ]
    columns = ["site", "made by", "read by", "grid", "scale", "note"]
    filled = [place for place in range(len(columns)) if any(cell[place] for cell in cells)]
    if cells:
        shown = [[cell[place] for place in filled] for cell in cells]
        show(table("values", [columns[place] for place in filled], shown), on_stdout=on_stdout)
    if usual:
        say(f"values: {usual}, unless noted", on_stdout=on_stdout)
    if left := [(row.site, row.why, row.advice) for row in rows if row.why]:
        columns = ["site", "why", "what would change it"]
        show(table("operators that stay float", columns, left), on_stdout=on_stdout)


def _made(row: SiteRow) -> str:
    made = " + ".join(_short(row, part) for part in row.made_by.split(" + "))
    return f"{made}, in codes" if row.join else made


def _note(row: SiteRow, usual: str) -> str:
    layers = [name for name in row.read_by if ":" not in name]
    again = _some(row, row.rounded_again_by)
    if again and row.rounded_again_by == layers:
        again = "its layers"
    parts = [
        "" if row.top is None else f"clipped at {row.top:g}",
        row.group and f"shares the grid of {row.group}",
        again and f"rounded again by {again}",
        row.note,
        "" if row.how in ("", usual) else row.how,
    ]
    return "; ".join(filter(None, parts))


def _some(row: SiteRow, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(_short(row, name) for name in names[:SHOWN]) + more


def _short(row: SiteRow, name: str) -> str:
    """Return a layer or site without the block that it shares with the row's own site."""
    block = row.site.partition(":")[0]
    return name.removeprefix(f"{block}:").removeprefix(f"{block}.") if block else name

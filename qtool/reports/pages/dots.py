"""The figure of a comparison: every seed of every arm as a dot, and how far arms differ.

What it says in colour stands in words beside it: the accent is better, the other one worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qtool.reports.pages.drawing import ACCENT, EDGE, INK, QUIET, TEXT, WARN, Box, axes
from qtool.reports.pages.figures import LETTER, MINUS, NARROW, WIDE, Drawing, head, shortened
from qtool.reports.words import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Standing = Literal["first", "better", "worse", "open"]
COLOURS: Mapping[Standing, str] = {"first": INK, "better": ACCENT, "worse": WARN, "open": QUIET}
ROW, ROW_NAMED = 44, 54  # pixels of a row, and of one with its name above it
HEAD, FOOT = 26, 40  # pixels above and below all rows


@dataclass(frozen=True)
class SeedRow:
    """One arm: its value on each seed, and how it stands to the first.

    Attributes:
        values: shares, of the seeds that have one.
        difference, low, high: of the arm from the first, shares; None where it is left open.
        new_low, new_high: the interval on new images.
    """

    name: str
    values: Sequence[float]
    mean: float | None
    standing: Standing = "open"
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    new_low: float | None = None
    new_high: float | None = None


def seed_dots(rows: Sequence[SeedRow], *, wide: bool, margin: float | None = None) -> Drawing:
    """Draw every seed of every arm as a dot, and beside or below it the differences."""
    judged = any(row.low is not None or row.difference is not None for row in rows)
    row_height = ROW if wide else ROW_NAMED
    height = HEAD + row_height * len(rows) + FOOT
    if wide:
        label = min(190.0, 14 + max(LETTER * TEXT * len(row.name) for row in rows))
        split = label + (WIDE - label) * (0.5 if judged else 1)

        def draw_wide(figure: "Figure") -> None:
            _dots(axes(figure, Box(label, WIDE - split + 50, HEAD, FOOT)), rows, label - 8)
            if judged:
                box = Box(split + 16, 74, HEAD, FOOT)
                _gaps(axes(figure, box), rows, margin, named=False)

        return Drawing(draw_wide, WIDE, height)

    below = height - row_height if judged else 0

    def draw_narrow(figure: "Figure") -> None:
        _dots(axes(figure, Box(8, 52, HEAD, FOOT + below)), rows, 0)
        if judged:
            _gaps(axes(figure, Box(8, 72, HEAD + height, FOOT)), rows[1:], margin, named=True)

    return Drawing(draw_narrow, NARROW, height + below)


def _rows(ax: "Axes", rows: Sequence[SeedRow], room: float, *, named: bool) -> None:
    """Lay out a row for each arm: its name at its left where there is room, else above it."""
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    for place, row in enumerate(rows):
        ax.axhline(place, color=EDGE, linewidth=1, zorder=0)
        if not named:
            continue
        weight = "bold" if row.standing in ("better", "worse") else "normal"
        if room:
            words = shortened(row.name, room)
            where, at, anchor = (-room, 0), "center", "left"
        else:
            words, where, at, anchor = shortened(row.name, 270), (0, 12), "bottom", "left"
        ax.annotate(
            words, (0, place), where, ax.get_yaxis_transform(), "offset points",
            ha=anchor, va=at, clip_on=False, color=COLOURS[row.standing], fontweight=weight,
        )  # fmt: skip


def _dots(ax: "Axes", rows: Sequence[SeedRow], room: float) -> None:
    values = [100 * value for row in rows for value in row.values]
    _span(ax, values)
    _rows(ax, rows, room, named=True)
    several = any(len(row.values) > 1 for row in rows)
    head(ax, "accuracy of each seed, %" if several else "accuracy, %")
    for place, row in enumerate(rows):
        colour = COLOURS[row.standing]
        shown = [100 * value for value in row.values]
        ax.plot(
            shown, [place] * len(shown), "o", ms=9, mfc=colour, mec="none", alpha=0.45, zorder=2,
            clip_on=False,
        )  # fmt: skip
        if row.mean is None:
            _beside(ax, place, "failed", WARN)
        else:
            mean = [100 * row.mean] * 2
            ax.plot(mean, [place - 0.24, place + 0.24], color=colour, lw=2.5, zorder=3)
            _beside(ax, place, f"{100 * row.mean:.2f}", colour)


def _beside(ax: "Axes", place: float, words: str, colour: str) -> None:
    """Write at the right of a row."""
    ax.annotate(
        words, (1, place), (10, 0), ax.get_yaxis_transform(), "offset points",
        ha="left", va="center", color=colour, annotation_clip=False,
    )  # fmt: skip


def _gaps(ax: "Axes", rows: Sequence[SeedRow], margin: float | None, *, named: bool) -> None:
    """Draw how far arms are from the first, with intervals, and what counts as equal."""
    ends = [
        100 * end
        for row in rows
        for end in (row.difference, row.low, row.high, row.new_low, row.new_high)
        if end is not None
    ]
    _span(ax, [0.0, *ends, *([100 * margin, -100 * margin] if margin else [])])
    _rows(ax, rows, 0, named=named)
    head(ax, "difference in points")
    if margin:
        ax.axvspan(-100 * margin, 100 * margin, color=EDGE, alpha=0.5, linewidth=0, zorder=0)
    for place, row in enumerate(rows):
        ax.plot([0, 0], [place - 0.2, place + 0.2], color=QUIET, linewidth=1, zorder=1)
        if row.difference is None:
            continue
        colour, gap = COLOURS[row.standing], 100 * row.difference
        if row.low is not None and row.high is not None:
            ax.plot([100 * row.low, 100 * row.high], [place] * 2, color=colour, lw=3.5, zorder=2)
        if row.new_low is not None and row.new_high is not None:
            ends = [100 * row.new_low, 100 * row.new_high]
            ax.plot(ends, [place] * 2, color=colour, lw=1.2, zorder=2)
        ax.plot(gap, place, "o", ms=9, mfc=colour, mec="none", zorder=3)
        _beside(ax, place, points(row.difference), colour)


def _span(ax: "Axes", values: Sequence[float]) -> None:
    """Let all values be seen, with a little room, and round numbers below."""
    from matplotlib.ticker import MaxNLocator

    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    room = max(0.05 * (high - low), 0.25)
    ax.set_xlim(low - room, high + room)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))

"""Figures of what accuracy costs: size, time, bits, and which of them nothing beats."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from qtool.reports.pages.drawing import ACCENT, EDGE, INK, QUIET, TEXT, Box, axes
from qtool.reports.pages.figures import (
    LETTER,
    NARROW,
    Drawing,
    head,
    plain_costs,
    plain_ticks,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cost:
    """A point of accuracy against what it costs."""

    name: str
    cost: float
    accuracy: float


def cheapest(found: Sequence[Cost]) -> list[Cost]:
    """Return those that nothing beats at once in cost and in accuracy, by their cost."""
    kept: list[Cost] = []
    for one in sorted(found, key=lambda each: (each.cost, -each.accuracy)):
        if not kept or one.accuracy > kept[-1].accuracy:
            kept.append(one)
    return kept


BESIDE = (  # a point: where its name may stand, pixels
    (0, 14, "center"),
    (-8, 12, "right"),
    (9, 0, "left"),
    (0, -14, "center"),
    (-9, 0, "right"),
    (8, -12, "left"),
    (-8, -12, "right"),
    (8, 12, "left"),
)


def costs(found: Sequence[Cost], unit: str) -> Drawing:
    """Draw accuracy against cost; those that nothing beats are joined, and in the accent."""
    best = cheapest(found)

    def draw(figure: "Figure") -> None:
        ax = axes(figure, Box(46, 24, 30, 42))
        ax.grid(axis="y", color=EDGE, linewidth=1)
        ax.set_axisbelow(True)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ratio = max(one.cost for one in found) / max(1e-12, min(one.cost for one in found))
        if ratio > 8:
            ax.set_xscale("log")
        else:
            ax.margins(x=0.12)
        x, y = [one.cost for one in best], [100 * one.accuracy for one in best]
        ax.plot(x, y, color=ACCENT, linewidth=1.5, drawstyle="steps-post", alpha=0.6)
        for one in found:
            colour = ACCENT if one in best else QUIET
            ax.plot(one.cost, 100 * one.accuracy, "o", ms=9, mfc=colour, mec="none")
        ax.margins(y=0.16)
        ax.set_xlabel(unit, fontsize=TEXT)
        plain_ticks(ax, logarithmic=False)
        plain_costs(ax, logarithmic=ratio > 8)
        head(ax, "accuracy, %")
        _names_of_points(ax, found, best)

    return Drawing(draw, NARROW, 268)


def _names_of_points(ax: "Axes", found: Sequence[Cost], best: Sequence[Cost]) -> None:
    """Write the name of each point beside it, where that is over no other name or point."""
    ax.autoscale_view()  # else places are those before the last point
    ax.get_xlim()
    ax.get_ylim()
    places = [ax.transData.transform((one.cost, 100 * one.accuracy)) for one in found]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    line = [ax.transData.transform((one.cost, 100 * one.accuracy)) for one in best]
    for (x, y), (x2, y2) in pairwise(line):
        taken += [(x, y - 2, x2, y + 2), (x2 - 2, y, x2 + 2, y2)]
    left, right = (float(ax.transAxes.transform((end, 0))[0]) for end in (0, 1))
    for one, (x, y) in sorted(
        zip(found, places, strict=True), key=lambda each: (each[0] not in best, -each[1][1])
    ):
        words = shortened(one.name, 200, 11)
        long = LETTER * 11 * len(words)
        for dx, dy, anchor in (
            (9, 0, "left"),
            (-9, 0, "right"),
            (0, 14, "center"),
            (0, -14, "center"),
        ):
            start = x + dx - {"left": 0, "right": long, "center": long / 2}[anchor]
            box = (start, y + dy - 7, start + long, y + dy + 7)
            free = all(
                box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken
            )
            if free and box[0] >= left - 4 and box[2] <= right + 22:
                taken.append(box)
                ax.annotate(
                    words, (one.cost, 100 * one.accuracy), (dx, dy), "data", "offset points",
                    ha=anchor, va="center", fontsize=11.5, color=ACCENT if one in best else INK,
                    annotation_clip=False,
                )  # fmt: skip
                break

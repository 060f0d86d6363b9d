"""Figures of lines: learning curves over epochs, and measures over learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.reports.pages.drawing import ACCENT, EDGE, TEXT, Box, axes
from qtool.reports.pages.figures import (
    LETTER,
    NARROW,
    Drawing,
    head,
    plain_costs,
    plain_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CurveLine:
    """One line over epochs, and a band around it.

    Attributes:
        label: what stands at its end.
        values: one for each epoch; None where there is none.
        low, high: of the band; empty without one.
    """

    name: str
    epochs: Sequence[int]
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    colour: str = ACCENT
    label: str = ""


CURVES = (NARROW, 216)


def curves(
    lines: Sequence[CurveLine],
    title: str,
    *,
    logarithmic: bool = False,
    limits: tuple[float, float] | None = None,
) -> Drawing:
    """Draw a few lines over epochs, each with its label at its end."""
    longest = max((len(line.label) for line in lines), default=0)

    def draw(figure: "Figure") -> None:
        ax = axes(figure, Box(44, 14 + LETTER * TEXT * longest, 30, 36))
        _bare(ax)
        if logarithmic:
            ax.set_yscale("log")
        for line in lines:
            held = [float("nan") if value is None else value for value in line.values]
            if line.low:
                low, high = (
                    [float("nan") if value is None else value for value in side]
                    for side in (line.low, line.high)
                )
                ax.fill_between(line.epochs, low, high, color=line.colour, alpha=0.16, linewidth=0)
            alone = "o" if len(line.epochs) == 1 else ""
            ax.plot(line.epochs, held, color=line.colour, linewidth=2, marker=alone)
        if limits is not None:
            ax.set_ylim(*limits)
        _epochs_below(ax, lines)
        plain_ticks(ax, logarithmic=logarithmic)
        _names_at_ends(ax, lines)
        head(ax, title)

    return Drawing(draw, *CURVES)


def _bare(ax: "Axes") -> None:
    """Leave nothing of the y axis but faint lines across."""
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", color=EDGE, linewidth=1)
    ax.set_axisbelow(True)


def _epochs_below(ax: "Axes", lines: Sequence[CurveLine]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max((epoch for line in lines for epoch in line.epochs), default=1)
    first = min((epoch for line in lines for epoch in line.epochs), default=1)
    ax.set_xlim(first - (0.5 if first == last else 0), last + (0.5 if first == last else 0))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    ax.set_xlabel("epoch", fontsize=TEXT)


def _names_at_ends(ax: "Axes", lines: Sequence[CurveLine]) -> None:
    """Write at the end of each line what it is, none over another."""
    ax.autoscale_view()  # else places are those before the last line
    ax.get_ylim()
    ends: list[tuple[float, CurveLine]] = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        if known:
            ends.append((float(ax.transData.transform((0, known[-1]))[1]), line))
    low, high = (float(ax.transAxes.transform((0, end))[1]) for end in (0, 1))
    ends.sort(key=lambda end: end[0])
    heights = spread([height for height, _ in ends], 15, low + 4, high + 6)
    for height, (_, line) in zip(heights, ends, strict=True):
        share = (height - low) / (high - low)
        ax.annotate(
            line.label, (1, share), (7, 0), "axes fraction", "offset points",
            ha="left", va="center", color=line.colour,
        )  # fmt: skip


def spread(heights: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Return rising heights moved as little as it takes to be so far apart, within bounds if so."""
    made = list(heights)
    for _ in range(len(made) * 8):
        for place in range(1, len(made)):
            gap = apart - (made[place] - made[place - 1])
            if gap > 0:
                made[place - 1] -= gap / 2
                made[place] += gap / 2
        if made:
            made[0], made[-1] = max(made[0], low), min(made[-1], high)
    return made


@dataclass(frozen=True)
class RateLine:
    """A measure of one arm by learning rate; None where there is none."""

    name: str
    rates: Sequence[float]
    values: Sequence[float | None]
    colour: str


def over_rates(
    lines: Sequence[RateLine], title: str, *, logarithmic: bool, unit: str = "learning rate"
) -> Drawing:
    """Draw a measure of a few arms over learning rates, or over what `unit` says, evenly."""
    rates = unit == "learning rate"

    def draw(figure: "Figure") -> None:
        ax = axes(figure, Box(50, 14 + LETTER * TEXT * 6, 30, 40))
        _bare(ax)
        if rates:
            ax.set_xscale("log")
        if logarithmic:
            ax.set_yscale("log")
        for line in lines:
            held = [float("nan") if value is None else value for value in line.values]
            ax.plot(line.rates, held, "o-", ms=6, color=line.colour, linewidth=2)
        ax.margins(x=0.06)
        ax.set_xlabel(unit, fontsize=TEXT)
        plain_ticks(ax, logarithmic=logarithmic)
        plain_costs(ax, logarithmic=rates)
        rising = [sorted(zip(one.rates, one.values, strict=True)) for one in lines]
        last = [[value for _, value in each] for each in rising]
        ends = [
            CurveLine(one.name, (), values, colour=one.colour, label=one.name)
            for one, values in zip(lines, last, strict=True)
        ]
        _names_at_ends(ax, ends)
        head(ax, title)

    return Drawing(draw, NARROW, 232)

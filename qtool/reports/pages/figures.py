"""What all figures of pages share: their sizes, how names are cut, and how numbers are written."""

from typing import TYPE_CHECKING, NamedTuple

from qtool.console import printable
from qtool.reports.pages.drawing import QUIET, TEXT, Draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NARROW, WIDE = 326, 640  # pixels, of a phone's page and of a desktop's
LETTER = 0.62  # width of a letter as a share of the text's size, generously
MINUS = "\N{MINUS SIGN}"


class Drawing(NamedTuple):
    """What draws a figure, and its size in pixels."""

    draw: Draw
    width: float
    height: float


def shortened(name: str, room: float, size: float = TEXT) -> str:
    """Return as much of a name as fits into so many pixels, its end where it is cut."""
    letters, name = max(4, int(room / (LETTER * size))), printable(name).replace("\n", " ")
    return name if len(name) <= letters else "\N{HORIZONTAL ELLIPSIS}" + name[1 - letters :]


def head(ax: "Axes", words: str) -> None:
    """Write above axes what they show."""
    ax.annotate(
        words, (0, 1), (0, 10), "axes fraction", "offset points",
        ha="left", va="bottom", color=QUIET, fontsize=TEXT,
    )  # fmt: skip


def plain_ticks(ax: "Axes", *, logarithmic: bool) -> None:
    """Write a few round numbers beside the y axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    if logarithmic:
        low, high = ax.get_ylim()
        each = (1, 2, 5) if high / low < 200 else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=each))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(axis="y", which="minor", length=0)
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def plain_costs(ax: "Axes", *, logarithmic: bool) -> None:
    """Write a few round numbers below the x axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    few = LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    ax.xaxis.set_major_locator(few)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)

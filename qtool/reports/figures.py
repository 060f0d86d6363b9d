"""Small figures as plain SVG text, and the page they may stand in. Neither fetches anything.

A figure is a row of panels, each with axes, a few lines and a title. Its colours come from a style
sheet: its own where it stands alone, else the page's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, repeat
from textwrap import wrap

Point = tuple[float, float]
Span = tuple[float, float]

CELL, LEFT, TOP, WIDTH, HEIGHT = 240, 34, 26, 192, 128  # pixels of a panel and of its plot
BELOW = 26  # pixels for what stands under the plot
HEADING = 46  # pixels for the name and the formula of a figure that stands alone
NEAR = 0.05  # pixels by which a line may miss a point that is left out
SANS = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
LIGHT = {
    "card": "#ffffff",
    "edge": "#d0d7de",
    "ink": "#1f2328",
    "quiet": "#59636e",
    "faint": "#b6bec8",
    "band": "#f4f6f8",
    "forward": "#0969a8",
    "backward": "#c2410c",
    "opposite": "#7c3aed",
    "map": "#15803d",
}
DARK = {
    "card": "#0d1117",
    "edge": "#3d444d",
    "ink": "#e6edf3",
    "quiet": "#9198a1",
    "faint": "#4a535d",
    "band": "#161b22",
    "forward": "#58a6ff",
    "backward": "#ff9b5e",
    "opposite": "#c4a1ff",
    "map": "#4ac26b",
}
LINES = ("forward", "backward", "opposite", "map")

PAGE_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--quiet:#59636e;--edge:#d0d7de;--soft:#f6f8fa}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6edf3;--quiet:#9198a1;--edge:#3d444d;--soft:#161b22}body{background:#0d1117}}
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;color:var(--ink);
max-width:52rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font:600 1.15rem ui-monospace,Menlo,Consolas,monospace;margin:0}
section{border-top:1px solid var(--edge);padding:1.2rem 0;break-inside:avoid}
p{margin:.4rem 0}pre{background:var(--soft);padding:.5rem .8rem;border-radius:6px;
white-space:pre-wrap}nav{columns:13rem}nav a{display:block}.quiet{color:var(--quiet)}
.panels{display:flex;flex-wrap:wrap}.panels svg{flex:1 1 240px;max-width:24rem;margin-top:.6rem}
"""


@dataclass(frozen=True)
class Line:
    """A line through points; it breaks where one is not finite, or outside the panel.

    Attributes:
        kind: what it shows, one of LINES, or "diagonal"; it decides the colour.
        label: its words in the legend, or "".
    """

    points: Sequence[Point]
    kind: str
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        x: the lowest and the highest x that it shows.
        y: the same for y.
        band: a stretch of x with a background of its own.
        verticals: every x with a faint vertical line.
        words: what stands there where there is nothing to draw.
    """

    title: str
    x: Span
    y: Span
    lines: Sequence[Line] = ()
    band: Span | None = None
    verticals: Sequence[float] = ()
    words: str = ""


def style() -> str:
    """Return the style sheet of figures; screens in dark mode get dark colours, paper does not."""
    return f"{_rules(LIGHT)}@media screen and (prefers-color-scheme:dark){{{_colours(DARK)}}}"


def _rules(colours: dict[str, str]) -> str:
    return (
        f"svg text{{font:11px {SANS}}}"
        f"svg .name{{font:600 14px {MONO}}}svg .formula{{font:11.5px {MONO}}}"
        "svg .title{font-weight:600}"
        "svg .axis,svg .threshold,svg polyline{fill:none}"
        "svg polyline{stroke-width:1.8;stroke-linejoin:round}"
        "svg .opposite{stroke-dasharray:4 2.5}"
        "svg .diagonal{stroke-width:1.1;stroke-dasharray:4 3}"
        "svg .threshold{stroke-dasharray:2 3}"
    ) + _colours(colours)


def _colours(colours: dict[str, str]) -> str:
    lines = "".join(f"svg .{kind}{{stroke:{colours[kind]}}}" for kind in LINES)
    return (
        f"svg text{{fill:{colours['ink']}}}"
        f"svg .tick,svg .formula,svg .words{{fill:{colours['quiet']}}}"
        f"svg .card{{fill:{colours['card']};stroke:{colours['edge']}}}"
        f"svg .band{{fill:{colours['band']}}}svg .threshold{{stroke:{colours['faint']}}}"
        f"svg .axis,svg .diagonal{{stroke:{colours['quiet']}}}{lines}"
    )


def figure(panels: Sequence[Panel], label: str) -> str:
    """Return panels in a row as an <svg> for a page that has the style sheet."""
    width, height = CELL * len(panels), TOP + HEIGHT + BELOW
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">\n'
        f"{_row(panels, 0, 0)}</svg>\n"
    )


def standing_alone(panels: Sequence[Panel], name: str, formula: str) -> str:
    """Return panels in a row as an SVG file, on a card with the name and the formula."""
    width, height = CELL * len(panels) + 16, HEADING + TOP + HEIGHT + BELOW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img" aria-label="{escape(name)}">\n'
        f"<style>{style()}</style>\n"
        f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="6"/>\n'
        f"{_text(14, 23, name, 'name')}{_text(14, 41, formula, 'formula')}"
        f"{_row(panels, 8, HEADING)}</svg>\n"
    )


def page(title: str, body: str) -> str:
    """Return an HTML page around `body`, which may hold figures."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{PAGE_STYLE}{style()}</style>\n"
        f"</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )


def _row(panels: Sequence[Panel], left: int, top: int) -> str:
    corners = range(left + LEFT, left + LEFT + CELL * len(panels), CELL)
    return "".join(map(_panel, panels, corners, repeat(top + TOP)))


def _panel(panel: Panel, left: float, top: float) -> str:
    """Draw one panel with the corner of its plot at (left, top)."""
    right, bottom = left + WIDTH, top + HEIGHT

    def across(x: float) -> float:
        return left + WIDTH * (x - panel.x[0]) / (panel.x[1] - panel.x[0])

    def down(y: float) -> float:
        return bottom - HEIGHT * (y - panel.y[0]) / (panel.y[1] - panel.y[0])

    parts = [_text(left, top - 9, panel.title, "title")]
    if panel.words:
        lines = wrap(panel.words, 30)
        first = top + HEIGHT / 2 - 7 * (len(lines) - 1)
        for row, line in enumerate(lines):
            parts.append(_text(left + WIDTH / 2, first + 15 * row, line, "words", "middle"))
        return "".join(parts)
    if panel.band:
        start, stop = across(panel.band[0]), across(panel.band[1])
        parts.append(
            f'<rect class="band" x="{_px(start)}" y="{_px(top)}"'
            f' width="{_px(stop - start)}" height="{HEIGHT}"/>\n'
        )
    grid = "".join(f"M{_px(across(x))} {_px(top)}V{_px(bottom)}" for x in panel.verticals)
    parts.append(f'<path class="threshold" d="{grid}"/>\n' if grid else "")
    marks = f"M{_px(left)} {_px(top)}V{_px(bottom)}H{_px(right)}"
    for x in ticks(*panel.x, most=7):
        marks += f"M{_px(across(x))} {_px(bottom)}v3"
        parts.append(_text(across(x), bottom + 15, _number(x), "tick", "middle"))
    for y in ticks(*panel.y, most=5):
        marks += f"M{_px(left)} {_px(down(y))}h-3"
        parts.append(_text(left - 6, down(y) + 4, _number(y), "tick", "end"))
    parts.append(f'<path class="axis" d="{marks}"/>\n')
    parts.append(_text(right + 6, bottom + 4, "u", "tick"))
    for line in panel.lines:
        for run in _runs(line.points, panel):
            places = thinned([(round(across(x), 2), round(down(y), 2)) for x, y in run])
            points = " ".join(f"{_px(x)},{_px(y)}" for x, y in places)
            parts.append(f'<polyline class="{line.kind}" points="{points}"/>\n')
    named = [line for line in panel.lines if line.label]
    for row, line in enumerate(named):
        x, y = left + WIDTH / 2 - 26, bottom - 40 + 15 * row
        parts.append(f'<path class="{line.kind}" d="M{_px(x)} {_px(y - 4)}h22"/>\n')
        parts.append(_text(x + 28, y, line.label, "tick"))
    return "".join(parts)


def _runs(points: Sequence[Point], panel: Panel) -> Iterator[list[Point]]:
    """Yield the stretches of a line that the panel shows."""

    def is_shown(point: Point) -> bool:
        (x, y), slack = point, 1e-9  # NaN lies between no two numbers
        return panel.x[0] - slack <= x <= panel.x[1] + slack and (
            panel.y[0] - slack <= y <= panel.y[1] + slack
        )

    for shown, run in groupby(points, is_shown):
        if shown and len(kept := list(run)) > 1:
            yield kept


def thinned(points: list[Point]) -> list[Point]:
    """Return a line through fewer points, which misses none of the others by more than NEAR.

    Reference: Ramer, 1972; Douglas and Peucker, 1973.
    """
    kept, waiting = {0, len(points) - 1}, [(0, len(points) - 1)]
    while waiting:
        first, last = waiting.pop()
        gaps = [(_gap(points[k], points[first], points[last]), k) for k in range(first + 1, last)]
        gap, farthest = max(gaps, default=(0.0, first))
        if gap > NEAR:
            kept.add(farthest)
            waiting += [(first, farthest), (farthest, last)]
    return [points[index] for index in sorted(kept)]


def _gap(point: Point, start: Point, stop: Point) -> float:
    """Return the distance of a point from the straight line between two others."""
    (x, y), (x0, y0), (x1, y1) = point, start, stop
    length = math.hypot(x1 - x0, y1 - y0)
    if not length:
        return math.hypot(x - x0, y - y0)
    return abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round numbers from low to high, evenly spaced."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    spacing = next(
        power * factor
        for factor in (1, 2, 5, 10, 20)
        if math.floor(high / (power * factor)) - math.ceil(low / (power * factor)) < most
    )
    first, last = math.ceil(low / spacing), math.floor(high / spacing)
    return [count * spacing for count in range(first, last + 1)]


def _text(x: float, y: float, words: str, kind: str, anchor: str = "") -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    shown = escape(words, quote=False)
    return f'<text class="{kind}" x="{_px(x)}" y="{_px(y)}"{where}>{shown}</text>\n'


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")

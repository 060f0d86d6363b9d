"""How figures of pages and papers are drawn: matplotlib's axes in, SVG for a page or a file out.

One unit is one pixel, so that text has the size that it says. In a page colours are those of its
style sheet, light or dark, and text has its font; in a file they are LIGHT, on white. matplotlib is
loaded when the first figure is drawn, and only then.
"""

import io
import re
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from qtool.errors import InputError
from qtool.files.whole import refuse_unless_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, EDGE, SOFT, ACCENT, WARN = (
    "#1d1c1a", "#66635d", "#dcd8d0", "#efece6", "#0b6e75", "#a8480c",
)  # fmt: skip
VARIABLES = {
    INK: "ink",
    QUIET: "quiet",
    EDGE: "edge",
    SOFT: "soft",
    ACCENT: "accent",
    WARN: "warn",
}
TEXT = 12  # pixels
NAMED = {"pdf": "pdf", "svg": "svg", "png": "png"}
STYLE = Path(__file__).parent / "templates" / "figure.mplstyle"


@dataclass(frozen=True)
class Box:
    """Where axes stand in a figure: distances from its edges, pixels."""

    left: float
    right: float
    top: float
    bottom: float


Draw = Callable[["Figure"], None]


@contextmanager
def _figure(width: float, height: float) -> "Generator[Figure]":
    """Lend an empty figure of so many pixels; what stands in for a missing glyph is no warning."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(fname=STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def axes(figure: "Figure", box: Box) -> "Axes":
    """Return axes with nothing but a line below, at a place in pixels."""
    width, height = figure.get_size_inches() * 72
    across, tall = width - box.left - box.right, height - box.top - box.bottom
    made = figure.add_axes((box.left / width, box.bottom / height, across / width, tall / height))
    made.patch.set_visible(False)
    made.tick_params(length=4, width=1, pad=5)
    return made


def for_page(draw: Draw, width: float, height: float, name: str) -> Markup:
    """Return a figure as an <svg> for a page.

    Args:
        draw: puts it on an empty figure.
        width: pixels.
        height: pixels.
        name: of the figure, unlike any other's on the page.
    """
    text = io.StringIO()
    with _figure(width, height) as figure:
        figure.patch.set_visible(False)
        draw(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(_for_page(text.getvalue(), width, height, name))


def _for_page(svg: str, width: float, height: float, name: str) -> str:
    """Return matplotlib's file without what a page has itself, in the page's colours."""
    inner = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for part in ("metadata", "style"):
        inner = re.sub(rf"<{part}\b.*?</{part}>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<!--.*?-->", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', inner)
    inner = re.sub(r'(?:xlink:)?href="#([^"]*)"', rf'href="#{name}-\1"', inner)
    inner = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", inner)
    inner = re.sub(r"\bfont: ([\d.]+)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r"\bfont: (\w+) ([\d.]+)px [^;\"]*", r"font-weight: \1; font-size: \2px", inner)
    inner = inner.replace("stroke: #000000; stroke-opacity: 0", "stroke: none")
    inner = re.sub(r"\n\s*", "\n", inner)
    for colour, variable in VARIABLES.items():
        inner = inner.replace(colour, f"var(--{variable})")
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {size} aria-hidden="true">{inner}'


def named(figure: Markup | Sequence[Markup], label: str) -> Markup:
    """Return one figure, or a narrow and a wide one of the same, with what it shows in words."""
    if not isinstance(figure, Markup):
        narrow, wide = figure
        inner = Markup('<div class="narrow">{}</div><div class="wide">{}</div>')
        figure = inner.format(narrow, wide)
    shell = Markup('<div class="plot" role="img" aria-label="{}">{}</div>')
    return shell.format(escape(label), figure)


def refuse_unless_drawable(path: Path) -> None:
    """Check that a figure can be written, before any work is done for it.

    Raises:
        InputError: If its name ends otherwise than in .pdf, .svg or .png, or it cannot be written.
    """
    if path.suffix.lower().removeprefix(".") not in NAMED:
        raise InputError(f"{path}: no figure; give a name that ends in .pdf, .svg or .png")
    refuse_unless_writable(path, "--figure names a .pdf, .svg or .png file")


def write_figure(draw: Draw, width: float, height: float, path: Path) -> None:
    """Write a figure as a file for a paper, by its name's ending: PDF, SVG or PNG on white.

    Raises:
        WriteError: If it cannot be written there.
    """
    kind = NAMED[path.suffix.lower().removeprefix(".")]
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    with _figure(width, height) as figure:
        draw(figure)
        write_atomically(
            path, lambda part: figure.savefig(part, format=kind, dpi=300, metadata=dates)
        )

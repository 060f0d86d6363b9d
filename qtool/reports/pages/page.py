"""Pages: typed results in, one HTML file out that fetches nothing and runs nothing.

What a page says comes from files that strangers may have made: it is escaped, and without
characters that a terminal would obey. A content security policy in the page itself forbids the
browser to fetch anything and to run any script.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from qtool import __version__
from qtool.console import printable
from qtool.reports.figures import style as style_of_panels
from qtool.reports.pages.tables import Table

FEW = 3  # lines of a verdict that are all as large
TELLING = re.compile(r"\bis (better|worse)\b")
LONG_NAME = re.compile(r"[^\s-]{24}")
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Plot:
    """A figure that says what it shows, and the table beside it, where it has one of its own."""

    figure: Markup
    table: Table | None = None
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """An estimator, drawn: its panels."""

    name: str
    summary: str
    formula: str
    panels: Sequence[Markup]


@dataclass(frozen=True)
class Said:
    """A warning, and what it is of; "" where that is all."""

    of: str
    says: str


@dataclass(frozen=True)
class Folded:
    """A text that is opened by its name."""

    name: str
    note: str
    text: str


@dataclass(frozen=True)
class Repeat:
    """What it takes to do it again."""

    lead: str
    command: str
    folded: Sequence[Folded]


@dataclass(frozen=True)
class Sentence:
    """A line of a verdict, and whether it tells something for certain."""

    words: Markup
    telling: bool


def verdict_of(text: str) -> list[Sentence]:
    """Return the lines of a verdict, of many those first that tell something for certain."""
    lines = text.splitlines()
    found = []
    for line in lines:
        words, certain = TELLING.subn(r'is <em class="\1">\1</em>', str(breakable(line)))
        found.append(Sentence(Markup(words), bool(certain) or len(lines) <= FEW))
    return sorted(found, key=lambda each: not each.telling)


def breakable(text: str) -> Markup:
    """Return a text whose long names may go on in another line, after each _, / and comma."""
    if not LONG_NAME.search(text):
        return escape(text)
    return Markup(re.sub(r"([_/,])(?=\w)", r"\1<wbr>", str(escape(text))))


def rendered(template: str, given: Mapping[str, object]) -> str:
    """Return a page: a template of `qtool/reports/pages/templates`, with what it is given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8") + style_of_panels()
    page = environment.get_template(template)
    return printable(page.render(given, style=Markup(style), version=__version__)) + "\n"

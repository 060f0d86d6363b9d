"""Every gradient estimator at a glance: its formula, its class and its pictures.

What it says comes from the estimators themselves: their docstrings, their parameters and their
derivative. To add one, see qtool/numerics/estimators.py; nothing needs to be done here.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qtool.errors import InputError
from qtool.files.whole import refuse_unless_makeable, refuse_unless_writable, write_text
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.schedules import MOVES
from qtool.numerics.straight_through_map import StraightThroughMap, straight_through_map
from qtool.reports.figures import Line, Panel, Point, figure, page, standing_alone
from qtool.reports.inspections import Estimator, EstimatorTable

PER_STEP = 400  # places between two levels at which lines are computed
STEEPEST = 1e6  # derivatives from here on, and those that are no number, are left out
HAIR = 1e-6  # how far beside a jump its two ends are computed


class Family(NamedTuple):
    """Estimators for one kind of grid; how that is drawn: its levels, and the stretch of u."""

    name: str
    low: int
    high: int
    across: tuple[float, float]


ANY_GRID = Family("any grid", -2, 2, (-3.5, 3.5))
RELU = Family("ReLU", 0, 3, (-1.5, 5.5))
SIGN = Family("sign, two levels", 0, 1, (-1.0, 2.0))


def table_of_estimators(output: Path | None = None) -> EstimatorTable:
    """Describe every estimator; draw them into `output`, a page NAME.html or a folder.

    Raises:
        InputError: If the output is neither, or cannot be written.
    """
    if output is not None:
        _refuse_unless_drawable(output)
    entries = [describe(name) for name in ESTIMATORS.names()]
    if output is None:
        return EstimatorTable(kind="estimators", estimators=entries)
    if _is_page(output):
        write_text(output, gallery(entries))
    else:
        for file, text in pictures(entries).items():
            write_text(output / file, text)
    return EstimatorTable(kind="estimators", estimators=entries, output=str(output))


def _is_page(output: Path) -> bool:
    return output.suffix.lower() == ".html"


def _refuse_unless_drawable(output: Path) -> None:
    if _is_page(output):
        refuse_unless_writable(output, "give NAME.html or a folder")
    elif output.suffix and not output.is_dir():
        raise InputError(f"{output}: not a {output.suffix} file; give NAME.html or a folder")
    else:
        refuse_unless_makeable(output)


def describe(name: str) -> Estimator:
    """Return what there is to say of an estimator at its default parameters, ready for JSON."""
    family = family_of(name)
    parameters = ESTIMATORS.parameters(name)
    interior, bounded = _judged(name), _judged(name, family.low, family.high)
    documented = _documented(ESTIMATORS[name])
    return Estimator(
        name=name,
        summary=documented.summary,
        formula=documented.formula[0] if documented.formula else "",
        formula_lines=documented.formula,
        reference=documented.reference,
        notes=documented.notes,
        parameters={key: _plain(p.default) for key, p in parameters.items()},
        may_be_scheduled=[
            key
            for key, p in parameters.items()
            if MOVES in getattr(p.annotation, "__metadata__", ())
        ],
        family=family.name,
        in_class=interior.in_class,
        reason=interior.reason,
        alpha=_finite(interior.alpha),
        lower=_finite(interior.lower),
        upper=_finite(interior.upper),
        in_class_with_bounds=bounded.in_class,
        reason_with_bounds=bounded.reason,
    )


def family_of(name: str) -> Family:
    """Return the family of an estimator; a user's own serve any grid."""
    return {"any grid": ANY_GRID, "relu": RELU, "sign": SIGN}[ESTIMATORS.facts(name).family]


@dataclass
class _Docstring:
    """What a docstring says, as far as it does."""

    summary: str = ""
    formula: list[str] = field(default_factory=list)
    reference: str = ""
    notes: list[str] = field(default_factory=list)


def _documented(function: Callable[..., Tensor]) -> _Docstring:
    """Read a docstring: summary, indented formula, notes and reference, as far as there are."""
    text = inspect.cleandoc(function.__doc__ or "") if inspect.isfunction(function) else ""
    found = _Docstring()
    for index, block in enumerate(re.split(r"\n\s*\n", text)):
        words = " ".join(block.split())
        if index == 0:
            found.summary = words
        elif re.match(r"\s+g_u = ", block):
            found.formula = [line.strip() for line in block.strip("\n").splitlines()]
        elif words.startswith("Reference: "):
            found.reference = words.removeprefix("Reference: ")
        else:
            found.notes.append(words)
    return found


def _judged(name: str, *bounds: float) -> StraightThroughMap:
    try:
        return straight_through_map(name, *bounds)
    except Exception as error:  # a user's estimator may raise anything
        reason = f"it cannot be judged: {_first_line(error)}"
        return StraightThroughMap(math.nan, math.nan, math.nan, reason, None, (0.0, 0.0))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(default: object) -> bool | float | str | None:
    """Return a default as JSON may hold it; null where a parameter has none."""
    if default is inspect.Parameter.empty or default is None:
        return None
    if isinstance(default, float):
        return default if math.isfinite(default) else repr(default)
    return default if isinstance(default, bool | int | str) else repr(default)


def pictures(entries: list[Estimator]) -> dict[str, str]:
    """Return file name -> SVG; FILE.py:FUNCTION, a user's own, is no name of a file everywhere."""
    drawn = {}
    for entry in entries:
        file = re.sub(r"[^\w.-]", "_", entry.name) + ".svg"
        drawn[file] = standing_alone(panels(entry), entry.name, entry.formula)
    return drawn


def panels(entry: Estimator) -> list[Panel]:
    """Draw the rounding, its stand-in in the backward pass, and the map of an estimator."""
    family = family_of(entry.name)
    return [_forward(family), _backward(entry.name, family), _map(entry, family)]


def _thresholds(family: Family) -> list[float]:
    return [level + 0.5 for level in range(family.low, family.high)]


def _places(start: float, stop: float) -> Tensor:
    """Return float64 places from start to stop, multiples of 1/2; two beside each of these."""
    steps = range(round((stop - start) * PER_STEP) + 1)
    jumps = [start + k / PER_STEP for k in steps if k % (PER_STEP // 2) == 0]
    between = [start + k / PER_STEP for k in steps if k % (PER_STEP // 2)]
    beside = [place + side for place in jumps for side in (-HAIR, HAIR)]
    return torch.tensor(sorted(between + beside[1:-1]), dtype=torch.float64)


def _points(u: Tensor, v: Tensor) -> list[Point]:
    return list(zip(u.tolist(), v.tolist(), strict=True))


def _forward(family: Family) -> Panel:
    low, high = family.low, family.high
    u = _places(*family.across)
    return Panel(
        "forward: round(u), saturated",
        family.across,
        (low - 0.4, high + 0.4),
        [Line(_points(u, torch.round(u).clamp(low, high)), "forward")],
        (low, high),
        _thresholds(family),
    )


def _backward(name: str, family: Family) -> Panel:
    """Draw g_u / g; a second time for a negative g where that makes a difference."""
    title, u = "backward: g_u / g", _places(*family.across)

    def slope(grad: float) -> Tensor:
        return ESTIMATORS[name](torch.full_like(u, grad), u, family.low, family.high) / grad

    try:
        rising, falling = slope(1.0), slope(-1.0)
        both = torch.cat([rising, falling])
        shown = both[both.abs() < STEEPEST].tolist()
        lines = [Line(_points(u, rising), "backward")]
        if not torch.allclose(rising, falling, equal_nan=True):
            lines = [
                Line(_points(u, rising), "backward", "g > 0"),
                Line(_points(u, falling), "opposite", "g < 0"),
            ]
    except Exception as error:  # a user's estimator may raise anything
        words = f"cannot be drawn: {_first_line(error)}"
        return Panel(title, family.across, (0.0, 1.0), words=words)
    lowest, highest = min([0.0, *shown]), max([1.1, *shown])
    room = 0.08 * (highest - lowest)
    tall = (lowest - room if lowest < 0 else lowest, highest + room)
    return Panel(title, family.across, tall, lines, (family.low, family.high), _thresholds(family))


def _map(entry: Estimator, family: Family) -> Panel:
    """Draw M inside the grid, and the identity."""
    low, high = family.low, family.high
    across, found = (low - 0.4, high + 0.4), _judged(entry.name)
    tall = (low - 1.1, high + 1.1) if family is SIGN else across
    u = _places(low, high)
    try:
        moved = found.map(u)
    except Exception as error:  # ValueError where there is no M, anything from a user's estimator
        words = _first_line(error).removeprefix("there is ")
        return Panel("M(u)", across, tall, words=words)
    ends = max(across[0], tall[0]), min(across[1], tall[1])
    title = f"M(u), alpha = {found.alpha:.3g}" if found.in_class else "M(u), outside the class"
    lines = [Line([(end, end) for end in ends], "diagonal"), Line(_points(u, moved), "map")]
    return Panel(title, across, tall, lines, (low, high), _thresholds(family))


INTRODUCTION = """
What the backward pass of qtool uses in place of d round(u) / du, with u = x / scale in steps:
levels at integers, thresholds (dotted) at half-integers, the grid shaded. First, the rounding of
the forward pass. Second, the gradient with respect to u for each unit of incoming gradient.
Third, the map M of arXiv:2405.05171 beside the identity (dashed): under plain SGD, training with
the estimator stays close to training with straight_through from M(w0) at alpha times the
learning rate, where the estimator is in the theorem's class. All is at the default parameters.
"""


def gallery(entries: list[Estimator]) -> str:
    """Return all there is to say and to show of the estimators, as one HTML page."""
    names = [escape(entry.name) for entry in entries]
    links = "".join(f'<a href="#{name}">{name}</a>\n' for name in names)
    sections = "".join(map(_section, entries))
    body = f"<p>{_linked(INTRODUCTION)}</p>\n<nav>\n{links}</nav>\n{sections}"
    return page("Gradient estimators", body)


def _section(entry: Estimator) -> str:
    name, given = entry.name, entry.parameters
    moving = dict.fromkeys(entry.may_be_scheduled, " (a number or a schedule)")
    settings = [f"{key} = {value}{moving.get(key, '')}" for key, value in given.items()]
    facts = {
        "Parameters": ", ".join(settings) or "none",
        "For": "grids of two levels" if entry.family == SIGN.name else "any grid",
        "Reference": entry.reference,
        "Class": _verdict(entry),
    }
    rows = "".join(
        f'<p><span class="quiet">{key}:</span> {_linked(words)}</p>\n'
        for key, words in facts.items()
        if words
    )
    notes = "".join(f"<p>{_linked(note)}</p>\n" for note in entry.notes)
    formula = escape("\n".join(entry.formula_lines))
    block = f"<pre>{formula}</pre>\n" if formula else ""
    drawn = "".join(figure([panel], f"{name}, {panel.title}") for panel in panels(entry))
    return (
        f'<section id="{escape(name)}">\n<h2>{escape(name)}</h2>\n'
        f"<p>{escape(entry.summary)}</p>\n"
        f'{block}{notes}{rows}<div class="panels">\n{drawn}</div>\n</section>\n'
    )


def _verdict(entry: Estimator) -> str:
    """Say in words whether the theorem covers an estimator, inside the grid and with its bounds."""
    if not entry.in_class:
        return f"outside: {entry.reason}"
    words = f"inside, alpha = {entry.alpha:.4g}"
    if entry.in_class_with_bounds:
        return f"{words}, also with the bounds of the grid"
    return f"{words}; but not with the bounds of the grid: {entry.reason_with_bounds}"


def _linked(words: str) -> str:
    """Escape words, and make what they cite from arXiv a link."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, escape(words))

"""Curves of pages: each arm beside the one it is held against, mean over seeds, and a band."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qtool.reports.pages.drawing import ACCENT, QUIET, for_page, named
from qtool.reports.pages.lines import CurveLine, curves
from qtool.reports.pages.page import Plot
from qtool.reports.pages.tables import Table, plain
from qtool.reports.results import EpochLine
from qtool.reports.words import number

NOBODY: Mapping[str, str] = {}
ROWS = 12  # epochs of a table; the last is always among them


@dataclass(frozen=True)
class OfArms:
    """The histories of an arm's runs."""

    name: str
    histories: Sequence[Sequence[EpochLine]]


@dataclass(frozen=True)
class Curves:
    """Figures side by side, and one table for all of them."""

    plots: Sequence[Plot]
    table: Table
    what: str
    first: str = ""
    several: bool = False


def accuracy_of(line: EpochLine) -> float | None:
    """Return the accuracy by which an epoch is judged, in percent: a hold-out's, where there is."""
    judged = line.validation_accuracy if line.holdout_accuracy is None else line.holdout_accuracy
    return None if judged is None else 100 * judged


def loss_of(line: EpochLine) -> float | None:
    """Return the loss by which an epoch is judged: a hold-out's, where there is one."""
    return line.validation_loss if line.holdout_loss is None else line.holdout_loss


def curves_of_arms(arms: Sequence[OfArms], against: Mapping[str, str] = NOBODY) -> Curves | None:
    """Return the learning curves of arms; None where no run has two epochs.

    Args:
        arms: in their order.
        against: arm -> the one that it is held against, where that is not the first.
    """
    if max((len(one) for arm in arms for one in arm.histories), default=0) < 2:
        return None
    every = [line for arm in arms for one in arm.histories for line in one]
    where = "hold-out" if any(line.holdout_loss is not None for line in every) else "validation"
    of, what = accuracy_of, f"{where} accuracy, %"
    if all(of(line) is None for line in every):
        of, what = loss_of, f"{where} loss"
    lines = [line_of(arm.name, arm.histories, of) for arm in arms]
    several = any(len(arm.histories) > 1 for arm in arms)
    caption = f"{what}, mean over seeds" if several else what
    return each_beside(lines, what, "k", caption, against)


def each_beside(
    lines: Sequence[CurveLine],
    what: str,
    name: str,
    caption: str,
    against: Mapping[str, str] = NOBODY,
) -> Curves:
    """Return a figure for each arm, beside the one that it is held against, and the table of all.

    Args:
        lines: of arms; of one alone, that is drawn.
        what: they show.
        name: of the figures, unlike any other's on the page.
        caption: of the table.
        against: arm -> the one that it is held against, where that is not the first.
    """
    known = [v for line in lines for side in (line.low, line.high, line.values) for v in side]
    ends = [value for value in known if value is not None]
    room = 0.04 * (max(ends) - min(ends)) or abs(0.04 * ends[0]) or 1.0
    limits = (min(ends) - room, max(ends) + room)
    found = {line.name: line for line in lines}
    first = lines[0].name
    grey = list(dict.fromkeys(against.values())) or [first]
    others = [line for line in lines if line.name not in grey]
    plots = []
    for place, line in enumerate(others or lines[:1]):
        beside = found.get(against.get(line.name, first)) if others else None
        shown = [line] if beside is None else [replace(beside, colour=QUIET), line]
        shown = [replace(each, label=number(last_of(each), 3)) for each in shown]
        figure = for_page(*curves(shown, what, limits=limits), f"{name}{place}")
        told = f"{what} over epochs: {line.name} ends at {number(last_of(line))}"
        told += "" if beside is None else f", {beside.name} at {number(last_of(beside))}"
        plots.append(Plot(named(figure, told), title=line.name))
    banded = any(line.low for line in lines)
    in_grey = grey[0] if len(grey) == 1 else "the one that an arm is held against"
    table = curve_table(lines, caption)
    return Curves(plots, table, what, in_grey if others else "", several=banded)


def line_of(
    name: str,
    histories: Sequence[Sequence[EpochLine]],
    of: Callable[[EpochLine], float | None],
    colour: str = ACCENT,
) -> CurveLine:
    """Return the mean over runs by epoch, and where there are several the least and the most."""
    by_epoch: dict[int, list[float]] = {}
    for history in histories:
        for line in history:
            values = by_epoch.setdefault(line.epoch, [])
            if (value := of(line)) is not None:
                values.append(value)
    epochs = sorted(by_epoch)
    held = [by_epoch[epoch] for epoch in epochs]
    mean = [sum(values) / len(values) if values else None for values in held]
    if len(histories) < 2:
        return CurveLine(name, epochs, mean, colour=colour)
    low = [min(values, default=None) for values in held]
    high = [max(values, default=None) for values in held]
    return CurveLine(name, epochs, mean, low, high, colour)


def curve_table(lines: Sequence[CurveLine], caption: str) -> Table:
    """Return what curves show, at some of the epochs."""
    epochs = sorted({epoch for line in lines for epoch in line.epochs})
    steps = range(len(epochs) - 1, -1, -max(1, -(-len(epochs) // ROWS)))
    shown = [epochs[place] for place in reversed(steps)]
    values = [dict(zip(line.epochs, line.values, strict=True)) for line in lines]
    shares = ["%" in line.name or "%" in caption for line in lines]
    each = list(zip(values, shares, strict=True))
    rows = [(epoch, *(_told(of.get(epoch), share=share) for of, share in each)) for epoch in shown]
    return plain(["epoch", *(f"#{line.name}" for line in lines)], rows, caption)


def last_of(line: CurveLine) -> float | None:
    """Return the last value that a line has."""
    return next((value for value in reversed(line.values) if value is not None), None)


def _told(value: float | None, *, share: bool) -> str:
    return number(value) if value is None or not share else f"{value:.2f}"

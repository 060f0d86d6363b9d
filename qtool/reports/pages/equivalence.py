"""The page on an equivalence: is an estimator straight_through in disguise?"""

from collections.abc import Iterator
from dataclasses import dataclass

from qtool.reports.comparisons import ByArm, Equivalence
from qtool.reports.fair_words import accuracy_sentences
from qtool.reports.pages.drawing import ACCENT, INK, QUIET, WARN, for_page, named
from qtool.reports.pages.evidence import Evidence, facts, held_against, told_by_trials
from qtool.reports.pages.explained import explanation, of_looks
from qtool.reports.pages.figures import Drawing
from qtool.reports.pages.lines import RateLine, over_rates
from qtool.reports.pages.page import Plot, rendered, verdict_of
from qtool.reports.pages.tables import Table, plain
from qtool.reports.words import interval, number, percent, points

COLOURS = {"mapped": ACCENT, "naive": WARN, "jitter": QUIET}


@dataclass(frozen=True)
class RateFigure:
    """A measure over learning rates, drawn and in figures."""

    title: str
    drawing: Drawing
    table: Table
    told: str


def equivalence_page(result: Equivalence, shown: Evidence) -> str:
    """Return the page on an equivalence."""
    plots = [
        Plot(named(for_page(*each.drawing, f"e{place}"), each.told), each.table, each.title)
        for place, each in enumerate(rate_figures(result))
    ]
    given = {
        "title": f"Equivalence of {result.estimator}",
        "kicker": f"qtool compare equivalence · {result.recipe}",
        "question": f"Is {result.estimator} straight_through in disguise?",
        "verdict": verdict_of(result.verdict),
        "facts": [*_facts(result), *facts(shown)],
        "rule": result.rule,
        "notes": result.notes,
        "plots": plots,
        "accuracies": _accuracies(result),
        "how_judged": [*accuracy_sentences(result), *of_looks(result)],
        "explained": explanation(result.explained, held_against(result)),
        **told_by_trials(shown, result),
    }
    return rendered("equivalence.html", given)


def rate_figures(result: Equivalence) -> list[RateFigure]:
    """Return the measures by which runs are alike, over learning rates."""
    errors = result.weight_alignment_error
    shares = {
        "weight codes that are equal, %": result.quantized_weight_agreement,
        "changes of codes that are shared, %": result.change_point_agreement,
        "answers that are equal, %": result.inference_agreement,
    }
    found = [_figure(result, "error of aligned weights", errors, 1.0)]
    return found + [_figure(result, title, by_arm, 100.0) for title, by_arm in shares.items()]


def _figure(result: Equivalence, title: str, by_arm: ByArm, unit: float) -> RateFigure:
    lines = [
        RateLine(
            arm,
            result.learning_rates,
            [None if value is None else unit * value for value in values],
            COLOURS.get(arm, INK),
        )
        for arm, values in by_arm.items()
    ]
    known = [value for line in lines for value in line.values if value is not None]
    logarithmic = unit == 1 and bool(known) and min(known) > 0
    rows = [
        (f"{rate:g}", *(number(line.values[place], 3) for line in lines))
        for place, rate in enumerate(result.learning_rates)
    ]
    table = plain(["learning rate", *(f"#{line.name}" for line in lines)], rows, title)
    told = "; ".join(
        f"{line.name} {', '.join(number(value, 3) for value in line.values)}" for line in lines
    )
    rates = ", ".join(f"{rate:g}" for rate in result.learning_rates)
    drawing = over_rates(lines, title, logarithmic=logarithmic)
    return RateFigure(title, drawing, table, f"{title} at learning rates {rates}: {told}")


def _facts(result: Equivalence) -> Iterator[tuple[str, str]]:
    said = {None: "undecided", True: "equivalent", False: "not equivalent"}
    yield "verdict", said[result.equivalent]
    yield "learning rates", str(len(result.learning_rates))
    yield "seeds each", str(len(result.seeds))
    if result.alphas:
        low, high = min(result.alphas), max(result.alphas)
        yield "alpha", number(low, 3) if low == high else f"{number(low, 3)} to {number(high, 3)}"


def _accuracies(result: Equivalence) -> Table:
    found = {each.arm: each for each in result.differences}
    rows = []
    for arm in result.arms:
        gap = found.get(arm.name)
        told = ("", "") if gap is None else (points(gap.mean), interval(gap.low, gap.high))
        rows.append((arm.name, percent(arm.mean), *told, *map(percent, arm.values)))
    seeds = [f"#seed {seed}" for seed in result.seeds]
    columns = ["arm", "#accuracy", "#difference", "#interval", *seeds]
    return plain(columns, rows, "validation accuracy at the end; differences from custom in points")

"""The page on a comparison: its question and verdict, then what they rest on."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from qtool.reports.comparisons import Arm, Comparison, Difference
from qtool.reports.pages.costs import Cost, costs
from qtool.reports.pages.dots import SeedRow, Standing, seed_dots
from qtool.reports.pages.drawing import for_page, named
from qtool.reports.pages.evidence import Evidence, facts, held_against, told_by_trials
from qtool.reports.pages.explained import explanation, how_judged
from qtool.reports.pages.page import Plot, rendered, verdict_of
from qtool.reports.pages.tables import Table, plain
from qtool.reports.words import interval, number, percent, points

QUESTIONS = {
    "estimators": "Which gradient estimator of the {on} trains best?",
    "schedules": "Which schedule of {on} trains best?",
    "runs": "Which of these runs and files does best?",
}


def comparison_page(result: Comparison, shown: Evidence) -> str:
    """Return the page on a comparison."""
    found = {each.arm: each for each in result.differences}
    rows = seed_rows(result)
    judged = any(row.standing != "first" and row.difference is not None for row in rows)
    given = {
        "title": f"Comparison of {result.kind}",
        "kicker": " · ".join(filter(None, [f"qtool compare {result.kind}", result.recipe])),
        "question": "Which of these arms trains best?"
        if result.on == "arms"
        else QUESTIONS[result.kind].format(on=result.on or "weights"),
        "verdict": verdict_of(result.verdict),
        "facts": [*_facts(result), *facts(shown)],
        "how_judged": list(how_judged(result)),
        "explained": explanation(result.explained, held_against(result)),
        "tuned": candidates_of(result),
        "seeds": _seeds_plot(result, rows) if any(row.values for row in rows) else None,
        "judged": judged,
        "first": result.arms[0].name,
        "on_new": any(row.new_low is not None for row in rows),
        "margin": result.margin,
        "seeds_table": _seeds_table(result, found),
        "costs": list(_costs(result.arms)),
        **told_by_trials(shown, result),
    }
    return rendered("comparison.html", given)


def seed_rows(result: Comparison) -> list[SeedRow]:
    """Return the rows of the figure of all seeds."""
    found = {each.arm: each for each in result.differences}
    rows = []
    for place, arm in enumerate(result.arms):
        gap = found.get(arm.name)
        rows.append(
            SeedRow(
                arm.name,
                [value for value in arm.values if value is not None],
                arm.mean,
                _standing(gap, first=place == 0 and bool(found)),
                gap and gap.mean,
                gap and gap.low,
                gap and gap.high,
                gap and gap.new_low,
                gap and gap.new_high,
            )
        )
    return rows


def _standing(gap: Difference | None, *, first: bool) -> Standing:
    if gap is None or gap.low is None or gap.high is None or gap.low == gap.high:
        return "first" if first else "open"
    return "better" if gap.low > 0 else "worse" if gap.high < 0 else "open"


def _facts(result: Comparison) -> Iterator[tuple[str, str]]:
    if result.kind == "runs":
        yield "runs and files", str(len(result.arms))
        return
    yield "arms", str(len(result.arms))
    yield "seeds each", str(len(result.seeds))
    yield "trainings", f"{len(result.arms) * len(result.seeds)}"
    if lost := sum(arm.failed for arm in result.arms):
        yield "failed", str(lost)
    found = [each.detectable for each in result.differences if each.detectable is not None]
    if found:
        yield "found 4 times in 5", f"{100 * max(found):.1f} points"


def _seeds_plot(result: Comparison, rows: Sequence[SeedRow]) -> Plot:
    drawings = [seed_dots(rows, wide=wide, margin=result.margin) for wide in (False, True)]
    figures = [for_page(*each, name) for each, name in zip(drawings, ("sn", "sw"), strict=True)]
    told = [f"{row.name} {percent(row.mean)}" for row in rows]
    return Plot(named(figures, "Validation accuracy of each arm on each seed: " + ", ".join(told)))


def _seeds_table(result: Comparison, found: Mapping[str, Difference]) -> Table:
    if result.kind == "runs":
        columns = ["run or file", "#accuracy", "#bits per weight", "#size", "#ms per image"]
        rows = [arm.beside_others() for arm in result.arms]
        return plain(columns, rows, "validation accuracy, size, time of one image")
    seeds = [f"#seed {seed}" for seed in result.seeds]
    columns = ["arm", "#mean", "#sd", "#difference", "#interval", "#new images", "#p", *seeds]
    rows = []
    for arm in result.arms:
        gap = found.get(arm.name)
        spread = "-" if arm.std is None else f"{100 * arm.std:.2f}"
        values = (percent(value).removesuffix(" %") for value in arm.values)
        rows.append(
            (
                arm.name,
                percent(arm.mean).removesuffix(" %"),
                spread,
                "" if gap is None else points(gap.mean),
                "" if gap is None else interval(gap.low, gap.high),
                "" if gap is None else interval(gap.new_low, gap.new_high),
                "" if gap is None else number(gap.p_value, 2),
                *values,
            )
        )
    return plain(columns, rows, "validation accuracy, %; differences in points")


def candidates_of(result: Comparison) -> Table | None:
    """Return all candidates that arms were tuned with; None where nothing was tuned."""
    if not result.candidates:
        return None
    keys = list(dict.fromkeys(key for one in result.candidates for key in one.values))
    rows = [
        (
            one.arm,
            *(_value(one.values.get(key)) for key in keys),
            percent(one.holdout_accuracy),
            number(one.holdout_loss),
            "failed" if one.failed else "chosen" if one.chosen else "",
        )
        for one in result.candidates
    ]
    columns = ["arm", *(f"#{key}" for key in keys), "#hold-out accuracy", "#hold-out loss", ""]
    seed = result.candidates[0].seed
    return plain(columns, rows, f"candidates of each arm, on seed {seed}")


def _value(value: JsonValue) -> str:
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)


def costs_of(arms: Sequence[Arm]) -> Iterator[tuple[str, list[Cost]]]:
    """Yield what arms differ in, with accuracy at each cost."""
    units = {
        "file size, MB": [arm.bytes and arm.bytes / 1e6 for arm in arms],
        "one image, ms": [arm.latency_ms for arm in arms],
        "bits per weight": [arm.weight_bits_mean for arm in arms],
    }
    if len({value for value in units["file size, MB"] if value}) > 1:
        del units["bits per weight"]
    for unit, values in units.items():
        known = [
            Cost(arm.name, value, arm.mean)
            for arm, value in zip(arms, values, strict=True)
            if value and arm.mean is not None
        ]
        if len({one.cost for one in known}) > 1:
            yield unit, known


def _costs(arms: Sequence[Arm]) -> Iterator[Plot]:
    """Yield accuracy against what arms differ in."""
    for unit, known in costs_of(arms):
        told = ", ".join(
            f"{one.name} {percent(one.accuracy)} at {number(one.cost)}" for one in known
        )
        figure = for_page(*costs(known, unit), "c" + unit[0])
        rows = [(one.name, number(one.cost), percent(one.accuracy)) for one in known]
        table = plain(["arm", f"#{unit}", "#accuracy"], rows, f"accuracy against {unit}")
        yield Plot(named(figure, f"Accuracy against {unit}: {told}"), table)

"""The stories of comparisons: trials are trained, or runs that are finished are taken, and judged.

recipe -> arms, made fair -> trials -> outcomes -> arms, differences, verdict -> comparison.json
"""

from pathlib import Path
from typing import Unpack

from qtool.comparison.arms.compared import trials_of
from qtool.comparison.arms.estimators import estimator_arms
from qtool.comparison.arms.fair import AS_THEY_ARE, Fairness, fair_arms
from qtool.comparison.arms.given import given_arms
from qtool.comparison.arms.schedules import Scheduled, Window, schedule_arms
from qtool.comparison.equivalence.arms import compare_equivalent
from qtool.comparison.finished import side_by_side
from qtool.comparison.question import BatchOptions, ComparisonRequest, Side, compare_arms
from qtool.comparison.report import NOTHING, Shown
from qtool.reports.comparisons import Comparison, Equivalence
from qtool.runs.access import Access


def compare_estimators(
    recipe_path: Path,
    *,
    names: list[str] | None = None,
    on: Side | None = None,
    given: list[str] | None = None,
    fairness: Fairness = AS_THEY_ARE,
    **options: Unpack[BatchOptions],
) -> Comparison:
    """Recipe x estimators, or arms that are written out, x seeds -> trials -> comparison.json."""
    request = ComparisonRequest.of(recipe_path, options)
    if given:
        arms, side = given_arms(request, given), None
    else:
        arms, side = estimator_arms(request, names, on)
    named = bool(names or given)
    made = fair_arms(arms, fairness, request, "estimators", on=side, named=named)
    trials = trials_of(made.arms, request.folder("estimators"))
    return compare_arms("estimators", side or "arms", request, trials, made.said_in)


def compare_schedules(
    recipe_path: Path,
    *,
    names: list[str] | None = None,
    on: Scheduled = "alpha",
    windows: list[Window] | None = None,
    fairness: Fairness = AS_THEY_ARE,
    **options: Unpack[BatchOptions],
) -> Comparison:
    """Recipe x schedules x seeds -> trials -> comparison.json; return what it says."""
    request = ComparisonRequest.of(recipe_path, options)
    arms = schedule_arms(request, names, on, windows)
    made = fair_arms(arms, fairness, request, "schedules")
    trials = trials_of(made.arms, request.folder("schedules"))
    return compare_arms("schedules", on, request, trials, made.said_in)


def compare_equivalence(
    recipe_path: Path,
    *,
    name: str | None = None,
    rates: list[float] | None = None,
    **options: Unpack[BatchOptions],
) -> Equivalence:
    """Recipe x learning rates x seeds -> custom, mapped, naive, jitter -> comparison.json."""
    request = ComparisonRequest.of(recipe_path, options, seeds=1)
    return compare_equivalent(request, name, rates)


def compare_runs(
    sources: list[Path],
    *,
    output: Path | None = None,
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
    shown: Shown = NOTHING,
) -> Comparison:
    """Finished runs and ONNX files -> one table; written to comparison.json where asked."""
    access = Access.of(data_root, assignments, run_code=run_code)
    return side_by_side(sources, output, access, shown)

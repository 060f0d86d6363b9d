"""What a comparison with the straight-through equivalent says of trials that did not finish."""

from pathlib import Path
from typing import Any

import pytest

from qtool.comparison import equivalence
from qtool.comparison.equivalence import (
    METRIC_NAMES,
    Likeness,
    Question,
    arm_name,
    equivalence_report,
)
from qtool.comparison.trials import ComparisonFolder, Outcome
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import Equivalence
from qtool.reports.results import Summary
from qtool.runs.folder import RunFolder
from qtool.settings.section import check
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.recipe import Equivalent
from qtool.straight_through.weights import WeightMap

RATE = 0.01
RECIPE: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits"},
    "training": {"epochs": 1, "learning_rate": RATE},
}


def question(*, adaptive: bool = False, **weights: Any) -> Question:
    settings = check(WeightQuantization, {"bits": 2, "range": "he_uniform"} | weights, "weights")
    maps = {"conv": WeightMap(settings)}
    theory = Equivalent(check(Recipe, RECIPE, "r.yaml"), maps, {}, adaptive, "", [])
    return Question(theory, [RATE], [3, 1, 2])


def summary(status: Any) -> Summary:
    return Summary(
        status=status,
        run="r",
        epochs=1,
        seconds=0.0,
        parameters=1,
        weight_bits_mean=2.0,
        validation_accuracy=0.9,
        validation_loss=0.1,
        train_accuracy=0.9,
        train_loss=0.1,
    )


def report(
    asked: Question,
    failures: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    error: float = 0.01,
) -> tuple[Equivalence, list[tuple[str, int]]]:
    """Return the report where arms failed on some seeds, and which trials were read."""
    read: list[tuple[str, int]] = []
    alike = Likeness([], [], [], dict.fromkeys(METRIC_NAMES, error))
    monkeypatch.setattr(equivalence, "measure", lambda *_: alike)
    folder = ComparisonFolder(Path("c"))
    outcomes: dict[str, list[Outcome]] = {}
    for arm in asked.arms:
        name, failed = arm_name(RATE, arm), failures.get(arm, [])
        for seed in asked.seeds:
            recipe = asked.theory.recipe.model_copy(update={"seed": seed})
            said = summary("failed" if seed in failed else "finished")
            outcomes.setdefault(name, []).append(Outcome(folder.trial(name, recipe), said))

    def load(run: RunFolder) -> Any:
        read.append((run.path.parent.name, int(run.path.name.removeprefix("seed-"))))

    return equivalence_report("r.yaml", asked, outcomes, load), read


def test_arms_are_judged_on_the_seeds_that_all_of_them_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, read = report(question(), {"mapped": [1], "naive": [2]}, monkeypatch)
    seeds: dict[str, list[int]] = {}
    for arm, seed in read:
        seeds.setdefault(arm, []).append(seed)
    assert (seeds["mapped"], seeds["jitter"], seeds["naive"]) == ([3, 2], [3, 2], [3])
    assert result.equivalent is True
    assert "Some arm did not finish on 1 of 3 seeds, which are left out." in result.verdict
    whole, _ = report(question(), {"naive": [2]}, monkeypatch)
    assert "left out" not in whole.verdict


def test_without_a_seed_that_all_finished_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = report(question(), {"mapped": [1, 2], "jitter": [3]}, monkeypatch)
    assert result.equivalent is None
    assert "some arm did not finish, so nothing is said" in result.verdict


def test_under_adam_a_moving_parameter_has_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    moving = {"name": "linear", "start": 1.0, "stop": 2.0}
    estimator = {"name": "hyperbolic_tangent", "sharpness": moving}
    result, _ = report(question(adaptive=True, estimator=estimator), {}, monkeypatch)
    assert "is indistinguishable from straight_through, down to" in result.verdict


def test_where_nothing_moves_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = report(question(), {}, monkeypatch, error=0.0)
    assert result.equivalent is None
    assert "moved no weight, so the run is too short to say anything" in result.verdict

"""What a comparison with the straight-through equivalent says of trials that did not finish."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from qtool.comparison.equivalence import report as equivalence
from qtool.comparison.equivalence.asked import Question, arm_name
from qtool.comparison.equivalence.forecast import refuse_looks_without_verdict, said_of_power
from qtool.comparison.equivalence.likeness import METRIC_NAMES, Likeness
from qtool.comparison.equivalence.report import equivalence_report
from qtool.comparison.equivalence.slopes import slope_of
from qtool.comparison.equivalence.verdict import is_equivalent
from qtool.comparison.execution.trials import ComparisonFolder, Outcome
from qtool.comparison.judged import Judging
from qtool.comparison.statistics.looks import pocock_alpha
from qtool.errors import InputError
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import Curve, Equivalence
from qtool.reports.results import Summary
from qtool.runs.kept.folder import RunFolder
from qtool.settings.section import check
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.recipe import Equivalent
from qtool.straight_through.weights import WeightMap

RATE = 0.01
RATES = [RATE, RATE / 2, RATE / 4, RATE / 8]
RECIPE: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits"},
    "training": {"epochs": 1, "learning_rate": RATE},
}


def question(*, adaptive: bool = False, **weights: Any) -> Question:
    settings = check(WeightQuantization, {"bits": 2, "range": "he_uniform"} | weights, "weights")
    maps = {"conv": WeightMap(settings)}
    theory = Equivalent(check(Recipe, RECIPE, "r.yaml"), maps, {}, adaptive, "", [])
    return Question(theory, RATES, [3, 1, 2])


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


Errors = dict[str, Callable[[float], float]]  # arm -> rate -> weight alignment error
USUAL: Errors = {
    "mapped": lambda rate: 3 * rate,
    "naive": lambda rate: 0.4,
    "jitter": lambda rate: 0.001,
}


def report(
    asked: Question,
    failures: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    errors: Errors = USUAL,
    **how: Any,
) -> tuple[Equivalence, list[tuple[str, int]]]:
    """Return the report where arms failed on some seeds, and which trials were read."""
    read: list[tuple[str, int]] = []
    last: list[float] = []

    def alike(a: Any, b: Any, arm: str, theory: Any) -> Likeness:
        final: dict[str, float | None] = dict.fromkeys(METRIC_NAMES, 0.9)
        final["weight_alignment_error"] = errors[arm](last[-1])
        return Likeness([], [], [], final)

    monkeypatch.setattr(equivalence, "measure", alike)
    folder = ComparisonFolder(Path("c"))
    outcomes: dict[str, list[Outcome]] = {}
    for rate in asked.rates:
        for arm in asked.arms:
            name, failed = arm_name(rate, arm), failures.get(arm, [])
            for seed in asked.seeds:
                recipe = asked.theory.recipe.model_copy(update={"seed": seed})
                said = summary("failed" if seed in failed else "finished")
                outcomes.setdefault(name, []).append(Outcome(folder.trial(name, recipe), said))

    def load(run: RunFolder) -> Any:
        last.append(float(run.path.parent.parent.name.removeprefix("lr-")))
        read.append((run.path.parent.name, int(run.path.name.removeprefix("seed-"))))

    return equivalence_report("r.yaml", asked, outcomes, load, **how), read


def test_arms_are_judged_on_the_seeds_that_all_of_them_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, read = report(question(), {"mapped": [1], "naive": [2]}, monkeypatch)
    seeds: dict[str, list[int]] = {}
    for arm, seed in read:
        seeds.setdefault(arm, []).append(seed)
    assert (seeds["mapped"], seeds["jitter"], seeds["naive"]) == ([3, 2] * 4, [3, 2] * 4, [3] * 4)
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
    errors = USUAL | {"naive": USUAL["mapped"]}
    result, _ = report(question(adaptive=True, estimator=estimator), {}, monkeypatch, errors)
    assert "is equivalent to straight_through: their difference falls" in result.verdict
    assert "without the map" not in result.verdict


def test_where_nothing_moves_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    still: Errors = {arm: lambda rate: 0.0 for arm in USUAL}
    result, _ = report(question(), {}, monkeypatch, still)
    assert result.equivalent is None
    assert "moved no weight, so the run is too short to say anything" in result.verdict


def wavy(power: float, noise: float) -> Callable[[float], float]:
    """Return an error that falls by a power of the rate, up to factors beside it."""
    factors = dict(zip(RATES, (1 + noise, 1 - noise, 1 + noise, 1 - noise), strict=True))
    return lambda rate: rate**power * factors[rate]


@pytest.mark.parametrize(
    ("mapped", "jitter", "held", "words"),
    [
        (wavy(1.0, 0.05), 1e-4, True, "is equivalent to straight_through with lr x 1 and"),
        (wavy(0.0, 0.05), 1e-4, False, "is not equivalent to straight_through with lr x 1 and"),
        # far from it, but by less than a rate of 1 % more: nothing speaks against it
        (wavy(0.0, 0.05), 0.6, None, "may be equivalent to straight_through"),
        (wavy(0.5, 0.9), 1e-4, None, "undecided, as their difference may vanish"),
        (lambda rate: 0.0, 1e-4, True, "their runs are the same to the last bit"),
    ],
)
def test_the_power_of_the_learning_rate_decides(
    mapped: Callable[[float], float],
    jitter: float,
    held: bool | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = USUAL | {"mapped": mapped, "jitter": lambda rate: jitter}
    result, _ = report(question(), {}, monkeypatch, errors)
    assert result.equivalent is held
    assert words in result.verdict
    assert ("more learning rates or seeds would tell" in result.verdict) == (held is None)


# Of recipes/papers/README.md, MNIST at four rates: errors of the mapped run, and of the naive one.
MNIST = {2e-2: (0.149, 0.312), 4e-3: (0.057, 0.448), 1e-3: (0.018, 0.504), 5e-4: (0.0083, 0.535)}


def test_the_slope_is_that_of_least_squares() -> None:
    for column in (0, 1):
        found = slope_of({0: {rate: pair[column] for rate, pair in MNIST.items()}})
        x = np.log(list(MNIST))
        y = np.log([pair[column] for pair in MNIST.values()])
        slope = np.polyfit(x, y, 1)[0]
        line: Any = stats.linregress(x, y)
        half = stats.t.ppf(0.975, 2) * line.stderr
        assert found is not None
        assert found.points == 4
        assert found.slope == pytest.approx(slope) == pytest.approx(line.slope)
        assert (found.low, found.high) == pytest.approx((line.slope - half, line.slope + half))
        assert is_equivalent(found, 0.0083, 0.0070) is (True if column == 0 else None)
        assert is_equivalent(found, 0.535, 0.0070) is (column == 0)


def test_each_seed_has_a_level_of_its_own() -> None:
    rng = np.random.default_rng(0)
    errors = {
        seed: {rate: float(rate**0.8 * level * np.exp(rng.normal(0, 0.2))) for rate in RATES}
        for seed, level in ((0, 1.0), (1, 10.0), (5, 0.1))
    }
    found = slope_of(errors | {7: {RATES[0]: 1.0}, 8: {RATES[0]: None, RATES[1]: 0.0}})
    rows = [(s, r, e) for s, by_rate in errors.items() for r, e in by_rate.items()]
    design = np.array([[np.log(r), *(s == other for other in errors)] for s, r, _ in rows], float)
    y = np.log([e for *_, e in rows])
    solution, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(rows) - 4
    error = np.sqrt(residual[0] / freedom * np.linalg.inv(design.T @ design)[0, 0])
    half = stats.t.ppf(0.975, freedom) * error
    assert found is not None
    assert found.slope == pytest.approx(solution[0])
    assert (found.low, found.high) == pytest.approx((solution[0] - half, solution[0] + half))


def test_too_few_rates_leave_it_open() -> None:
    assert slope_of({0: {0.1: 1.0}, 1: {0.1: 2.0}}) is None
    two = slope_of({0: {0.1: 1.0, 0.01: 0.1}})
    assert two is not None
    assert (two.slope, two.low, two.high) == (pytest.approx(1.0), None, None)
    assert is_equivalent(two, 0.1, 0.001) is None


def test_a_planned_look_has_wider_intervals_which_the_rule_and_the_verdict_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = USUAL | {"mapped": wavy(0.8, 0.3)}
    plain, _ = report(question(), {}, monkeypatch, errors)
    judging = Judging(looks=(2, 3))
    looked, _ = report(question(), {}, monkeypatch, errors, judging=judging)
    wide, narrow = looked.slopes["mapped"], plain.slopes["mapped"]
    assert wide is not None
    assert narrow is not None

    freedom = 3 * len(RATES) - 3 - 1
    alpha = pocock_alpha((2, 3))
    ratio = stats.t.isf(alpha / 2, freedom) / stats.t.isf(0.025, freedom)
    assert wide.slope == narrow.slope
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(ratio)
    said = f"{100 * (1 - alpha):.3g} %"
    assert f"its {said} interval" in looked.rule
    assert f"({said}: " in looked.verdict
    assert "its 95 % interval" in plain.rule


def test_looks_are_recorded_and_unplanned_ones_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(question(), seeds=[3])
    first, _ = report(asked, {}, monkeypatch)
    (look,) = first.looks
    assert (look.seeds, look.planned, look.learning_rates) == ([3], True, RATES)
    again, _ = report(asked, {}, monkeypatch, before=first.looks)
    assert again.looks == first.looks
    assert "unplanned" not in again.verdict

    more, _ = report(question(), {}, monkeypatch, before=first.looks)
    assert [each.planned for each in more.looks] == [True, False]
    assert "judged before on 1 seed: looking until there is a verdict finds one by" in more.verdict
    assert more.verdict.endswith("% of comparisons; choose seeds before the first look.")

    fewer = replace(question(), seeds=[3], rates=RATES[:3])
    other, _ = report(fewer, {}, monkeypatch, before=first.looks)
    assert [each.learning_rates for each in other.looks] == [RATES, RATES[:3]]
    assert "on 1 seed, also at other learning rates: looking until" in other.verdict


def test_looks_that_could_have_no_verdict_are_refused_by_name() -> None:
    judging = Judging(looks=(2, 3))
    refuse_looks_without_verdict(question(), judging)
    refuse_looks_without_verdict(replace(question(), rates=[RATE]), Judging())
    with pytest.raises(InputError, match=r"--looks 2,3: no look would .* two --learning-rates"):
        refuse_looks_without_verdict(replace(question(), rates=[RATE]), judging)
    outside = replace(question().theory, outside="it looks at the sign")
    with pytest.raises(InputError, match=r"--looks 2,3: .* outside the class: it looks at the"):
        refuse_looks_without_verdict(replace(question(), theory=outside), judging)


def test_what_could_be_told_is_told_four_times_in_five(tmp_path: Path) -> None:
    """Of errors drawn at random about lines of the power that is said, and of power 0."""
    said = said_of_power(question(), Judging(), tmp_path / "none.json")
    match = re.match(r"powers .* ([\d.]+) apart .* \(4 rates, 3 seeds\), if errors lie 20 %", said)
    assert match
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        errors = {
            seed: {r: float(r ** float(match[1]) * np.exp(rng.normal(0, 0.2))) for r in RATES}
            for seed in range(3)
        }
        slope = slope_of(errors)
        assert slope is not None
        assert slope.low is not None
        found += slope.low > 0
    assert found / 400 == pytest.approx(0.8, abs=0.06)


def test_too_few_rates_and_seeds_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    nowhere = tmp_path / "none.json"
    two = replace(question(), rates=RATES[:2], seeds=[0])
    assert said_of_power(two, Judging(), nowhere) == (
        "2 rates, 1 seed do not tell how sure a power of the learning rate is, so the verdict "
        "stays open; give more --learning-rates or --seeds"
    )
    near = replace(question(), rates=[1.0, 0.9, 0.8])
    assert "a verdict takes 0.5: give more or wider" in said_of_power(near, Judging(), nowhere)
    outside = replace(question().theory, outside="it looks at the sign")
    assert said_of_power(replace(two, theory=outside), Judging(), nowhere) == ""


def test_the_noise_of_before_takes_the_place_of_an_assumed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noisy = USUAL | {"mapped": wavy(1.0, 0.1)}
    before, _ = report(question(), {}, monkeypatch, noisy)
    curves = [
        Curve(
            learning_rate=rate,
            seed=seed,
            arm="mapped",
            weight_alignment_error=[0.0, noisy["mapped"](rate)],
            quantized_weight_agreement=[],
            inference_agreement=[],
        )
        for rate in RATES
        for seed in (1, 2, 3)
    ]
    path = tmp_path / "comparison.json"
    before.model_copy(update={"curves": curves}).write(path)
    x, y = np.log(RATES), np.log([noisy["mapped"](rate) for rate in RATES])
    residual = ((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum()
    noise = (3 * residual / (12 - 3 - 1)) ** 0.5
    said = said_of_power(question(), Judging(), path)
    assert f"if errors lie {100 * noise:.0f} % off their line, as those before" in said


@pytest.mark.slow
def test_planned_looks_miss_no_more_often_than_one() -> None:
    """Of 3,000 comparisons at 2, 3 and 5 seeds, how often any interval misses the power."""
    rng = np.random.default_rng(7)
    alpha, missed = pocock_alpha((2, 3, 5)), 0
    for _ in range(3000):
        errors = {
            seed: {r: float(r**0.8 * np.exp(rng.normal(0, 0.2))) for r in RATES}
            for seed in range(5)
        }
        found = [slope_of({k: errors[k] for k in range(n)}, alpha=alpha) for n in (2, 3, 5)]
        missed += any(s is not None and not (s.low or 0) < 0.8 < (s.high or 0) for s in found)
    assert 0.03 < missed / 3000 < 0.06

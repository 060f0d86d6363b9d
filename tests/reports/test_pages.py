"""The pages on comparisons and runs: whole, closed to the outside, and true to their figures."""

import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

pytest.importorskip("matplotlib")

from qtool.reports.comparisons import Arm, Comparison, Difference, Equivalence, Look
from qtool.reports.explanations import Explained
from qtool.reports.fair_words import accuracy_sentences
from qtool.reports.fairness import Candidate
from qtool.reports.pages.comparison import candidates_of, comparison_page
from qtool.reports.pages.equivalence import equivalence_page
from qtool.reports.pages.evidence import Evidence
from qtool.reports.pages.explained import explanation, how_judged
from qtool.reports.pages.run import run_page
from tests.reports.pages import HOSTILE, a_run, closed, comparison, evidence

MINUS = "\N{MINUS SIGN}"
GOLDEN = Path(__file__).parent.parent / "golden" / "results"


@pytest.fixture(scope="module")
def shown() -> str:
    result = comparison()
    return comparison_page(result, evidence(result))


def test_the_page_on_a_comparison_says_its_question_its_verdict_and_every_number(shown) -> None:
    page = closed(shown)
    for words in (
        "Which gradient estimator of the weights trains best?",
        "better_one is better.",
        "62.00",  # the mean, and every seed
        "60.00",
        "64.00",
        "+11.00",
        "+5.00 to +17.00",
        "qtool compare estimators r.yaml",
        "-estimator: straight_through +estimator: better_one",
    ):
        assert words in page.text, words
    assert page.text.index("trains best?") < page.text.index("is better.") < 900


def test_every_figure_says_what_it_shows(shown) -> None:
    page = closed(shown)
    plots = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(plots) == 2  # seeds with differences, one arm's curve beside the first's
    assert "better_one 62.00 %" in (plots[0]["aria-label"] or "")
    assert "better_one ends at 62, straight_through at 51" in (plots[1]["aria-label"] or "")
    hidden = [attrs.get("aria-hidden") for tag, attrs in page.tags if tag == "svg"]
    assert hidden == ["true"] * 3  # of the seeds a narrow and a wide one


def test_names_on_a_page_stand_once_so_that_no_figure_takes_another_s_parts(shown) -> None:
    page = closed(shown)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {value.removeprefix("#") for value in page.attributes("href")} <= set(ids)


def test_what_files_say_is_text_and_never_markup() -> None:
    result = comparison(HOSTILE)
    for html in (comparison_page(result, evidence(result)), run_page(a_run(HOSTILE))):
        page = closed(html)
        assert "<script" not in html
        assert "\x1b" not in html
        assert '<script>alert("1")</script>' in page.text


def test_colours_are_the_page_s_and_text_has_its_size(shown) -> None:
    inside = "".join(re.findall(r"<svg.*?</svg>", shown, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", inside)
    assert {"var(--accent)", "var(--ink)"} <= set(re.findall(r"var\(--\w+\)", inside))
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", inside)]
    assert min(sizes) >= 11
    assert not re.search(r"\bfont: ", inside)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures empty, which take most of a page's time."""
    for place in ("comparison", "curves"):
        monkeypatch.setattr(
            f"qtool.reports.pages.{place}.for_page", lambda *_: Markup("<svg></svg>")
        )


def candidate(arm: str, rate: float, accuracy: float | None, **more: bool) -> Candidate:
    return Candidate(
        arm=arm,
        values={"training.learning_rate": rate, "training.batch": "auto"},
        seed=100_003,
        holdout_accuracy=accuracy,
        holdout_loss=None if accuracy is None else 1.5 - accuracy,
        failed=accuracy is None,
        chosen=more.get("chosen", False),
    )


@pytest.mark.usefixtures("undrawn")
def test_every_candidate_that_was_tried_stands_on_the_page() -> None:
    result = comparison().model_copy(
        update={
            "candidates": [
                candidate("straight_through", 0.015, 0.5),
                candidate("straight_through", 0.05, 0.625, chosen=True),
                candidate("better_one", 0.05, None),
            ]
        }
    )
    table = candidates_of(result)
    assert table is not None
    assert [column.name for column in table.columns] == [
        "arm",
        "training.learning_rate",
        "training.batch",
        "hold-out accuracy",
        "hold-out loss",
        "",
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["straight_through", "0.015", "auto", "50.00 %", "1", ""],
        ["straight_through", "0.05", "auto", "62.50 %", "0.875", "chosen"],
        ["better_one", "0.05", "auto", "-", "-", "failed"],
    ]
    page = closed(comparison_page(result, evidence(result)))
    assert "How they were tuned" in page.text
    assert "on seed 100003" in page.text
    many = result.model_copy(update={"candidates": [*(result.candidates or []) * 9]})
    assert "All 27 candidates" in closed(comparison_page(many, evidence(many))).text
    untuned = comparison()
    assert "tuned" not in closed(comparison_page(untuned, evidence(untuned))).text


def explained(arm: str, cosines: list[float | None]) -> Explained:
    epochs = list(range(1, len(cosines) + 1))
    levels: list[float | None] = [15.0] * len(epochs)
    measures = {"coarse_gradient_cosine": cosines, "levels_in_use": levels}
    return Explained(arm=arm, epochs=epochs, measures=measures)


@pytest.mark.usefixtures("undrawn")
def test_explanations_are_curves_of_each_arm_with_their_table_beside() -> None:
    arms = [
        explained("straight_through", [0.25, 0.5, 0.75]),
        explained("better_one", [0.5, None, 1.0]),
    ]
    result = comparison().model_copy(update={"explained": arms})
    made = explanation(arms)
    assert made is not None
    cosine, levels = made.curves
    assert [plot.title for plot in cosine.plots] == ["better_one"]
    assert (cosine.what, cosine.first) == ("cosine to the loss's gradient", "straight_through")
    assert [[cell.text for cell in row] for row in cosine.table.rows] == [
        ["1", "0.25", "0.5"],
        ["2", "0.5", "-"],
        ["3", "0.75", "1"],
    ]
    assert levels.what == "levels in use"
    page = closed(comparison_page(result, evidence(result)))
    told = [a.get("aria-label") or "" for _, a in page.tags if a.get("role") == "img"]
    assert (
        "cosine to the loss's gradient over epochs: better_one ends at 1, straight_through at 0.75"
        in told
    )
    assert page.text.index("What may explain it") < page.text.index("In grey, straight_through")


@pytest.mark.usefixtures("undrawn")
def test_an_arm_is_drawn_beside_the_one_that_it_is_held_against() -> None:
    """Of an equivalence that is custom of the same learning rate, which is no plot of its own."""
    arms = [f"lr-{rate}/{arm}" for rate in (2, 1) for arm in ("custom", "mapped")]
    many = [explained(arm, [0.25, 0.125 * k]) for k, arm in enumerate(arms)]
    made = explanation(many, {f"lr-{rate}/mapped": f"lr-{rate}/custom" for rate in (2, 1)})
    assert made is not None
    cosine, _ = made.curves
    assert [plot.title for plot in cosine.plots] == ["lr-2/mapped", "lr-1/mapped"]
    assert cosine.first == "the one that an arm is held against"
    assert "lr-2/mapped ends at 0.125, lr-2/custom at 0" in cosine.plots[0].figure
    assert "lr-1/mapped ends at 0.375, lr-1/custom at 0.25" in cosine.plots[1].figure
    assert len(cosine.table.columns) == 5

    alone = explanation(many[1:2], {"lr-2/mapped": "lr-2/custom"})  # custom failed
    assert alone is not None
    assert "lr-2/mapped ends at 0.125" in alone.curves[0].plots[0].figure
    assert "custom" not in alone.curves[0].plots[0].figure


@pytest.mark.usefixtures("undrawn")
def test_one_epoch_makes_no_curve_and_many_arms_no_endless_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = explanation([explained("a", [0.5]), explained("b", [0.25])])
    assert short is not None
    assert short.curves == []
    assert [[cell.text for cell in row] for row in short.ends.rows] == [
        ["a", "0.5", "15"],
        ["b", "0.25", "15"],
    ]
    monkeypatch.setattr("qtool.reports.pages.explained.MOST_FIGURES", 3)
    many = explanation([explained(f"arm_{k}", [0.5, 0.25]) for k in range(3)])
    assert many is not None
    assert [each.what for each in many.curves] == ["cosine to the loss's gradient"]
    assert len(many.curves[0].plots) == 2


def test_how_a_comparison_was_judged_is_said_line_by_line() -> None:
    looks = [
        Look(seeds=[0], alpha=0.05, planned=True, verdict="-"),
        Look(seeds=[0, 1], alpha=0.05, planned=False, verdict="-"),
    ]
    plain = comparison()
    assert list(how_judged(plain)) == []
    told = plain.model_copy(
        update={"looks": looks, "without_answers": ["a, seed 0", "b, seed 1"], "threads": 1}
    )
    assert list(how_judged(told)) == [
        "The comparison was judged 2 times: after 1 seed at 0.05; after 2 seeds at 0.05, "
        "unplanned.",
        "Judged by accuracies alone, for no answers to images are kept: a, seed 0; b, seed 1.",
        "Every trial was trained with one thread.",
    ]
    assert "with 2 threads." in [*how_judged(told.model_copy(update={"threads": 2}))][-1]


def test_runs_and_files_stand_side_by_side_with_what_accuracy_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qtool.reports.pages.comparison.for_page", lambda *_: Markup("<svg></svg>"))
    shared: dict[str, Any] = {"std": None, "failed": 0, "weight_bits_mean": 4.0}
    arms = [
        Arm(name="runs/a", values=[0.75], mean=0.75, bytes=2_500_000, **shared),
        Arm(name="b.onnx", values=[0.5], mean=0.5, bytes=50_000, latency_ms=0.125, **shared),
    ]
    result = Comparison(
        kind="runs", recipe=None, seeds=[], arms=arms, differences=[], verdict="b is smaller."
    )
    page = closed(comparison_page(result, Evidence()))
    for words in (
        "Which of these runs and files does best?",
        "runs and files 2",
        "runs/a 75.00 % 4 2.50 MB -",
        "b.onnx 50.00 % 4 50.0 kB 0.125",
        "What accuracy costs",
        "b.onnx 0.05 50.00 %",  # MB
    ):
        assert words in page.text, words
    told = [a.get("aria-label") or "" for _, a in page.tags if a.get("role") == "img"]
    assert "Accuracy against file size, MB: runs/a 75.00 % at 2.5, b.onnx 50.00 % at 0.05" in told
    assert not any("bits per weight" in each or "ms" in each for each in told)  # all alike, one


def test_an_equivalence_says_how_its_accuracies_lie_beside_those_of_custom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "qtool.reports.pages.equivalence.for_page", lambda *_: Markup("<svg></svg>")
    )
    kept = Equivalence.read(GOLDEN / "equivalence.json")
    ends = {"lr-0.02/mapped": (-0.002, 0.001), "lr-0.02/naive": (-0.03, -0.01)}
    differences = [
        Difference(
            arm=arm,
            against="lr-0.02/custom",
            mean=(low + high) / 2,
            low=low,
            high=high,
            pairs=3,
            equal=abs(low) < 0.005,
            equal_low=low / 2,
            equal_high=high / 2,
        )
        for arm, (low, high) in ends.items()
    ]
    result = kept.model_copy(update={"differences": differences, "margin": 0.005})
    assert list(accuracy_sentences(result)) == [
        "As accurate as custom to within 0.5 points: lr-0.02/mapped (-0.10 to +0.05).",
        "Less accurate than custom: lr-0.02/naive (-3.00 to -1.00).",
    ]
    better = differences[1].model_copy(update={"low": 0.01, "high": 0.03})
    more = result.model_copy(update={"differences": [better]})
    assert list(accuracy_sentences(more)) == [
        "More accurate than custom: lr-0.02/naive (+1.00 to +3.00)."
    ]
    assert list(accuracy_sentences(kept)) == []
    page = closed(equivalence_page(result, Evidence()))
    assert "Less accurate than custom: lr-0.02/naive" in page.text
    assert f"{MINUS}3.00 to {MINUS}1.00" in page.text

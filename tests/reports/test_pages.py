"""The pages on comparisons and runs: whole, closed to the outside, and true to their figures."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

pytest.importorskip("matplotlib")

from qtool.reports.explanations import Explained
from qtool.reports.exports import Export, UnprovenExport
from qtool.reports.fairness import Candidate
from qtool.reports.health import Finding
from qtool.reports.layer_figures import LayerFigures
from qtool.reports.pages import run as run_pages
from qtool.reports.pages.comparison import candidates_of, comparison_page
from qtool.reports.pages.confusion import confusion
from qtool.reports.pages.explained import explanation
from qtool.reports.pages.run import RunReport, run_page
from qtool.reports.results import Conversion
from tests.reports.pages import HOSTILE, Page, comparison, evidence, line, summary

GOLDEN = Path(__file__).parent.parent / "golden" / "results"


@pytest.fixture(scope="module")
def shown() -> str:
    result = comparison()
    return comparison_page(result, evidence(result))


def a_run(name: str = "runs/x", **more: object) -> RunReport:
    said: dict[str, object] = {
        "name": name,
        "model": "lenet5",
        "data": "digits",
        "epochs": 2,
        "recipe": "seed: 0\n",
        "summary": summary(0.75, health=[{"layer": name, "kind": "few_codes", "says": name}]),
        "history": [line(1, 0.5), line(2, 0.75, 0.25)],
        "images": 4,
        "confusion": confusion([0, 0, 1, 1], [0, 1, 1, 1], ["zero", name]),
        "layers": [
            LayerFigures(
                layer=name,
                shape=[4, 1, 3, 3],
                weight_bits=4,
                input_bits=8,
                levels_used=7,
                levels=15,
                saturated=0.125,
                sqnr=14.75,
                weight_scale=(0.25, 0.5),
                input_scale=(0.5, 0.5),
                flip_ratio=[0.25, 0.002],
                oscillation_frequency=[0.5, 0.003],
            )
        ],
    }
    return RunReport(**{**said, **more})  # pyright: ignore[reportArgumentType] tests name all


def closed(html: str) -> Page:
    """Read a page; check that it can fetch nothing, run nothing and follow nothing."""
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not {"src", "srcset", "action", "data"} & {key for _, a in page.tags for key in a}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert all(value.startswith("#") for value in page.attributes("href"))
    markup = re.sub(r">[^<]*<", "><", html)
    assert not re.search(r"https?:|//|@import", re.sub(r'"[^"]*"', '""', markup))
    assert not re.search(r"url\((?!#)", html)
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    return page


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


def test_the_page_on_a_run_says_how_good_it_is_and_what_its_layers_are() -> None:
    page = closed(run_page(a_run()))
    for words in (
        "How good is lenet5 with 4.00 bits per weight on digits?",
        "It is right on 75.00 % of 4 validation images.",
        "7 of 15",
        "12.5 %",
        "14.8",
        "0.25 to 0.5",
        "3 of 4 images are right.",
        "zero runs/x 1 50.0 %",  # one of two zeros is taken for the other
    ):
        assert words in page.text, words


def test_the_page_on_a_run_that_failed_says_so_first() -> None:
    failed = summary(None, status="failed", error="the loss is not finite", epochs=1)
    page = closed(run_page(a_run(summary=failed, history=[], layers=[], confusion=None)))
    assert "Training failed after 1 of 2 epochs." in page.text
    assert "the loss is not finite" in page.text


def test_heat_is_stronger_where_there_is_more() -> None:
    made = confusion([0] * 10 + [1] * 10, [0] * 9 + [1] + [1] * 4 + [0] * 6, ["a", "b"])
    heat = [[cell.heat or 0.0 for cell in row[1:]] for row in made.matrix.rows]
    assert heat[0][0] > heat[1][0] > heat[1][1] > heat[0][1]
    assert made.worst is not None
    assert [cell.text for cell in made.worst.rows[0]] == ["b", "a", "6", "60.0 %"]


def test_of_many_classes_those_with_the_worst_confusions_are_shown() -> None:
    labels = list(range(100)) * 2
    answers = [*range(100), *range(98), 7, 8]  # 98 is once taken for 7, 99 for 8
    made = confusion(labels, answers, [])
    names = [column.name for column in made.matrix.columns[1:]]
    assert len(names) == 20
    assert {"7", "8", "98", "99"} <= set(names)


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


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what the page on a run is made of, without drawing it."""

    def of(**more: object) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        monkeypatch.setattr(run_pages, "for_page", lambda *_: Markup("<svg></svg>"))
        monkeypatch.setattr(run_pages, "rendered", lambda _, said: found.append(said) or "")
        run_page(a_run(**{"history": [], "confusion": None, **more}))
        return found[0]

    return of


def said(given: dict[str, Any]) -> str:
    return " ".join(str(sentence.words) for sentence in given["verdict"])


def test_a_run_says_how_far_it_is(given: Callable[..., dict[str, Any]]) -> None:
    nothing = given(summary=None)
    assert said(nothing) == "Nothing is trained yet."
    assert nothing["question"] == "How good is lenet5 on digits?"
    assert nothing["facts"] == []

    halfway = given(summary=summary(0.75, status="running", epochs=1), images=None)
    assert said(halfway) == (
        "It is right on 75.00 % of the validation images after 1 epoch. "
        "Training is not finished: 1 of 2 epochs."
    )
    numbers = given(summary=summary(None, train_accuracy=None))
    assert said(numbers) == "Its validation loss is 0.25."
    assert "training accuracy" not in dict(numbers["facts"])


def test_a_run_says_what_became_of_it_in_integers_and_in_a_runtime(
    given: Callable[..., dict[str, Any]],
) -> None:
    converted = Conversion.read(GOLDEN / "convert.json").model_copy(
        update={"validation_accuracy_after": 0.5, "integer_bytes": 250_000, "float_bytes": 2e6}
    )
    exported = Export.read(GOLDEN / "export.json")
    fast = exported.latency_ms.model_copy(update={"float_": 3.0, "exported": 2.0})
    slow = exported.latency_ms.model_copy(update={"float_": 1.0, "exported": 2.0})
    for latency, beside in ((fast, "1.5 times as fast as float"), (slow, "slower than float")):
        made = exported.model_copy(update={"latency_ms": latency, "file_bytes": 1_500_000})
        page = given(conversion=converted, export=made)
        assert said(page) == (
            "It is right on 75.00 % of 4 validation images. In integers 50.00 %. "
            f"In onnxruntime 2.00 ms an image, {beside}."
        )
        facts = dict(page["facts"])
        assert facts["integer model"] == "0.25 MB (float 2.00 MB)"
        assert facts["exported file"] == "1.50 MB"


def test_what_is_wrong_with_a_run_is_said_once_and_of_what(
    given: Callable[..., dict[str, Any]],
) -> None:
    finding = Finding(layer="fc", kind="few_codes", says="2 of 15 codes are in use")
    of_file = finding.model_copy(update={"layer": "", "says": "it is slow"})
    exported = Export.read(GOLDEN / "export.json").model_copy(update={"health": [finding, of_file]})
    failed = summary(None, status="failed", error="the loss is not finite", health=[finding])
    warnings = given(summary=failed, export=exported)["warnings"]
    assert [(each.of, each.says) for each in warnings] == [
        ("", "the loss is not finite"),
        ("fc", "2 of 15 codes are in use"),
        ("exported file", "it is slow"),
    ]
    unproven = UnprovenExport.model_construct(
        file_bytes=1000, health=[], unproven="its runtime is not installed"
    )
    (warning,) = given(summary=summary(0.5), export=unproven)["warnings"]
    assert (warning.of, warning.says) == (
        "exported file",
        "not run, so not proven: its runtime is not installed",
    )


def test_a_run_without_classes_has_curves_of_its_loss_alone(
    given: Callable[..., dict[str, Any]],
) -> None:
    lines = [
        line(epoch, None, loss).model_copy(update={"train_accuracy": None, "holdout_loss": held})
        for epoch, loss, held in ((1, 0.5, 0.75), (2, 0.25, 0.625))
    ]
    curves = given(history=lines)["curves"]
    assert len(curves.plots) == 1
    assert [column.name for column in curves.table.columns] == [
        *("epoch", "training loss", "hold-out loss"),
    ]
    assert [cell.text for cell in curves.table.rows[-1]] == ["2", "0.25", "0.625"]


def test_a_layer_without_figures_has_dashes(given: Callable[..., dict[str, Any]]) -> None:
    known = a_run().layers[0]
    bare = LayerFigures(
        layer="",
        shape=[1],
        weight_bits=None,
        input_bits=None,
        levels_used=None,
        levels=None,
        saturated=None,
        sqnr=None,
        weight_scale=None,
        input_scale=(0.25, 0.25),
    )
    table = given(layers=[known, bare])["layers"]
    names = [column.name for column in table.columns]
    found = dict(zip(names, [cell.text for cell in table.rows[1]], strict=True))
    assert found["layer"] == "the model"
    assert (found["weight bits"], found["levels in use"], found["SQNR, dB"]) == ("float", "-", "-")
    assert (found["at the ends"], found["weight scale"], found["input scale"]) == ("-", "-", "0.25")

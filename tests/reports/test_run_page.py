"""The page on a run: all that it may say, and of what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

pytest.importorskip("matplotlib")

from qtool.reports.exports import Export, UnprovenExport
from qtool.reports.health import Finding
from qtool.reports.layer_figures import LayerFigures
from qtool.reports.pages import run as run_pages
from qtool.reports.pages.confusion import confusion
from qtool.reports.pages.run import run_page
from qtool.reports.results import Conversion
from tests.reports.pages import a_run, closed, line, summary

GOLDEN = Path(__file__).parent.parent / "golden" / "results"


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

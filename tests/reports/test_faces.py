"""What people see of results: every figure that a result has, and nothing of what it has not."""

import pytest

from qtool.reports.export_table import show_why_slow, warnings_of
from qtool.reports.exports import (
    AllExports,
    Control,
    EndsReport,
    Export,
    FloatOperator,
    Latency,
    NotExported,
    OtherSizeReport,
    TimesOnAllThreads,
    UnprovenExport,
)
from qtool.reports.health import Finding
from qtool.reports.inspections import Inspection
from qtool.reports.results import Conversion, StraightThrough
from qtool.reports.tables import show_result

EXPORT = {
    "images": 500,
    "sigma": 2.5,
    "top1_agreement": 0.998,
    "clear_share": 0.9,
    "clear_agreement": 1.0,
    "max_abs_difference": 0.125,
    "median_abs_difference": 0.0625,
    "accuracy_integer": 0.99,
    "accuracy_runtime": 0.988,
    "disagreement": "",
    "bits_per_weight_on_disk": 4.003,
    "quantized_weights": 11_164_352,
    "file_bytes": 5_720_000,
    "runtime": {"name": "onnxruntime", "version": "1.99.0"},
    "codes_compared": 11_164_352,
    "fused_share": 1.0,
    "fused_layers": 21,
    "quantized_layers": 22,
    "latency_ms": {"float": 5.79, "exported": 1.42, "static": None},
    "left_float": {},
    "file": "model.onnx",
    "target": "onnxruntime",
}
UNPROVEN = {
    "bits_per_weight_on_disk": 2.5,
    "quantized_weights": 100,
    "file_bytes": 2_000,
    "left_float": {},
    "file": "other.xml",
    "target": "openvino",
    "inputs": ["images"],
    "unproven": "openvino is not installed",
    "notes": ["a note"],
}
RELU = FloatOperator(operator="Relu", name="layer1", reason="it is float", change="bits")
SLOWER = Finding(layer="", kind="slower_than_float", says="the file is slower than float")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tables be as wide as they like."""
    monkeypatch.setenv("COLUMNS", "200")


def export(**more: object) -> Export:
    return Export.model_validate(EXPORT | more)


def rows_of(text: str) -> dict[str, str]:
    """Return the two columns of a table, left -> right."""
    cells = [line.strip("│ ").split("│") for line in text.splitlines() if line.count("│") == 3]
    return {left.strip(): right.strip() for left, right in cells}


def test_an_export_without_more_has_no_rows_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(export())

    out, err = capsys.readouterr()
    assert rows_of(out) == {
        "checked in": "onnxruntime 1.99.0",
        "images": "500",
        "top-1 agreement": "99.80 %",
        "accuracy in the runtime": "98.80 %",
        "largest logit difference": "0.125",
        "weight codes equal": "11,164,352",
        "bits per weight on disk": "4.003",
        "file": "5.72 MB",
        "layers in integer kernels": "21 of 22",
        "one image, one thread": "1.42 ms",
        "the float model": "5.79 ms",
        "written to": "model.onnx",
    }
    assert err == ""


def test_an_export_shows_each_figure_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    everywhere = TimesOnAllThreads.model_validate(
        {"float": 3.5, "exported": 0.75, "static": 0.875, "threads": 2}
    )
    latency = Latency.model_validate({"float": 1.0, "exported": 2.0, "all_threads": everywhere})
    ends = EndsReport(
        preprocess=True,
        softmax=False,
        images=4,
        top1_agreement=0.75,
        accuracy_runtime=None,
        max_abs_difference=0.5,
        max_grey_difference=1.5,
        grey_difference_share=0.0,
        disagreement="",
        same_images=4,
        same_agreement=1.0,
    )
    other = OtherSizeReport(
        height=40,
        width=56,
        images=8,
        top1_agreement=0.875,
        max_abs_difference=0.25,
        disagreement="",
    )
    by_design = RELU.model_copy(update={"by_design": True})
    show_result(
        export(
            latency_ms=latency,
            ends=ends,
            other_size=other,
            control=Control(images=4, max_abs_difference=0.5, median_abs_difference=0.25),
            ceil_shifted_share=1e-5,
            integer_operators=29,
            quantizable_operators=30,
            why_slow=[RELU, by_design, by_design],
            notes=["a note"],
            health=[SLOWER, Finding(layer="fc", kind="few_codes", says="has few codes")],
        )
    )

    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert rows["... of the file as it ships"] == "75.00 %"
    assert rows["pictures resized otherwise by up to"] == "1.5 of 255"
    assert rows["... of the file alone, input x 1.00001"] == "0.5"
    assert rows["at 40 x 56"] == "87.50 % top-1, 0.25"
    assert rows["all operators in integer kernels"] == "29 of 30"
    assert rows["input codes changed by the shift"] == "1.00e-05"
    assert rows["one image, one thread"] == "2.00 ms (SLOWER)"
    assert rows["one image, 2 threads"] == "0.75 ms"
    assert rows["the runtime's own int8"] == "0.88 ms"
    assert "why slow" in out
    assert "note: 2 operators between quantized ones stay float by design" in err
    assert "note: a note" in err
    assert "note: fc: has few codes" in err
    assert err.count("slower than float") == 1  # as the warning, and not as a note
    assert "note: the file is slower" not in err


def test_a_file_that_was_not_run_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    made = UnprovenExport.model_validate(UNPROVEN)
    show_result(made)

    out, err = capsys.readouterr()
    assert "exported, but not run" in out
    assert rows_of(out)["bits per weight on disk"] == "2.5"
    assert "note: openvino is not installed" in err
    assert list(warnings_of(made)) == ["not run, so not proven: openvino is not installed"]
    show_result(export(unproven="weights are of 16 bits"))
    assert "exported, but not verified" in capsys.readouterr().out


def test_each_target_has_a_row_and_each_warning_its_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = AllExports(
        targets={
            "onnxruntime": export(health=[SLOWER], integer_share=0.5, may_saturate=["conv1"]),
            "openvino": UnprovenExport.model_validate(UNPROVEN),
            "web": NotExported(error="no room for 3 bits", kind="refused"),
        }
    )
    show_result(made)

    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    cells = {line[0]: line[1:] for line in lines if len(line) == 6}
    name, *figures = cells["onnxruntime"]
    assert name == "onnxruntime 1.99.0"
    assert figures == ["99.80 %", "50.00 %", "5.72 MB", "model.onnx"]
    assert cells["openvino"][0] == "not run"
    assert "openvino is not installed" in cells["openvino"][-1]
    assert cells["web"] == ["", "", "", "", "no room for 3 bits"]
    slower, saturates, unproven = warnings_of(made)
    assert slower == "onnxruntime: the file is slower than float"
    assert saturates.startswith("onnxruntime: ")
    assert "conv1" in saturates
    assert unproven.startswith("openvino: not run")


def test_what_is_slow_is_told_by_reason_and_not_without_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    same = [RELU.model_copy(update={"name": f"layer{k}"}) for k in (1, 2, 2, 3, 4, 5)]
    others = [RELU.model_copy(update={"reason": f"reason {k}"}) for k in range(11)]
    show_why_slow([*same, *others])

    out, err = capsys.readouterr()
    assert "layer1, layer2, layer3 and 2 more" in out
    assert "reason 8" in out
    assert "reason 9" not in out
    assert "note: 2 more reasons stand under why_slow in the JSON file" in err


def test_a_conversion_shows_what_it_cost_where_it_cost_something(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "float_bytes": 4_000_000,
        "integer_bytes": 500_000,
        "validation_accuracy_before": 0.9,
        "validation_accuracy_after": 0.89,
        "validation_images": 100,
        "max_abs_difference": 0.5,
        "layers": [],
        "left_float": {},
        "notes": ["a note"],
        "integer_model": "run/integer.safetensors",
        "validation_accuracy_float": 0.95,
        "no_saturation": {
            "channels": {"fc": 3, "conv1": 4},
            "validation_accuracy_before": 0.9,
            "validation_accuracy_after": 0.88,
        },
    }
    show_result(Conversion.model_validate(given))

    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert rows["accuracy of the float model"] == "95.00 %"
    assert rows["channels rounded anew, not to saturate"] == "7"
    assert (rows["accuracy before that"], rows["accuracy after it"]) == ("90.00 %", "88.00 %")
    assert "joins in integers" not in rows
    assert "note: a note" in err
    show_result(Conversion.model_validate(given | {"validation_accuracy_float": None}))
    assert "accuracy of the float model" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("done", "then"),
    [(1, "1 of 2 epochs are done; go on with: qtool train"), (2, "written to b; the run was")],
)
def test_a_run_as_straight_through_says_how_it_goes_on(
    done: int, then: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = {"layer": "fc", "estimator": "tanh", "alpha": 0.45, "largest_shift": 0.125}
    given = {"to": "straight_through", "source": "a", "run": "b", "optimizer": "sgd"}
    given |= {"epochs_done": done, "epochs": 2, "max_abs_difference": 0.0, "layers": [layer]}
    show_result(StraightThrough.model_validate(given | {"notes": ["a note"]}))

    out, err = capsys.readouterr()
    assert "0.45" in out
    assert "0.125" in out
    assert then in err
    assert "note: a note" in err


def test_an_inspection_shows_facts_problems_and_what_is_float(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = Inspection(
        source="a.onnx",
        kind="ONNX model",
        file_bytes=5_720_000,
        parameters=11_164_352,
        validation_accuracy=0.875,
        left_float={"fc": "too small"},
        may_saturate=["conv1"],
        float_islands=[RELU],
        problems=["no name"],
        repairs=["a name"],
    )
    show_result(found)

    out = capsys.readouterr().out
    rows = rows_of(out)
    assert rows["file size"] == "5.72 MB"
    assert rows["parameters"] == "11,164,352"
    assert rows["validation accuracy"] == "87.50 %"
    assert rows["fc"] == "too small"
    assert "conv1" in out
    assert "in float between quantized operators: layer1 (Relu)" in out
    assert "problem: no name" in out
    assert "repaired: a name" in out

"""A run becomes files: of one target or all, proven or not, and none in the place of a good one."""

import json
import os
import re
from pathlib import Path

import onnx
import pytest
from torch import nn

from qtool import pipeline
from qtool.errors import ExportError, InputError, MissingRuntimeError
from qtool.export.targets.onnxruntime import OnnxRuntime, onnxruntime_from
from qtool.export.targets.target import TARGETS, Library, Runtime, Target
from qtool.export.writing.annotation import read_metadata
from qtool.export.writing.request import Writing
from qtool.export.writing.saturation import saturating_layers
from qtool.reports.exports import Export
from qtool.reports.results import ExportDescription
from qtool.runs.converted import export
from tests.kit import shell, tree, write_recipe

W8A8 = {
    "quantization.weights": {"bits": 8, "range": "absmax"},
    "quantization.activations.bits": 8,
}
pytestmark = pytest.mark.usefixtures("untimed")


def absent() -> Target:
    def never() -> Runtime:
        raise AssertionError("it is not there to be asked for")

    return Target(opset=18, library=Library("no_such_reader", "3.1", "Reader"), run_in=never)


def seven() -> Target:
    library = onnxruntime_from("1.19")
    return Target(opset=18, library=library, run_in=OnnxRuntime, saturation="seven_bits")


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be the usual target, one that is not installed, and one that saturates."""
    usual = TARGETS["onnxruntime"]
    monkeypatch.setattr(
        TARGETS, "_members", {"onnxruntime": usual, "absent": absent, "seven": seven}
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Write and prove nothing; return a list of what would be: targets and files."""
    asked: list[tuple[str, Path]] = []

    def write(integer: nn.Module, example: object, path: Path, writing: Writing) -> object:
        path.write_bytes(b"a new file")
        saturating = sorted(saturating_layers(integer))
        given = {"target": writing.target, "ceil": "exact", "layers": [], "table_bytes": 0}
        return ExportDescription(**given, left_float={}, may_saturate=saturating)

    def prove(trial: Path, path: Path, described: ExportDescription, *_: object, **__: object):
        asked.append((described.target, path))
        figures = dict.fromkeys(Export.model_fields, None) | {"target": described.target}
        figures |= {"file": str(path), "disagreement": "", "why_slow": []}
        figures |= {"may_saturate": described.may_saturate, "health": [], "notes": []}
        return Export.model_construct(**figures)

    monkeypatch.setattr(export, "write_onnx", write)
    monkeypatch.setattr(export, "export_report", prove)
    return asked


def disagree(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the files of one target disagree with their integer models."""
    prove = export.export_report

    def wrong(trial: Path, path: Path, described: ExportDescription, *_: object, **__: object):
        report = prove(trial, path, described)
        bad = {"disagreement": "the runtime is wrong"} if described.target == name else {}
        return report.model_copy(update=bad)

    monkeypatch.setattr(export, "export_report", wrong)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    pipeline.train(write_recipe(folder, W8A8), run_dir=folder / "run", device="cpu")
    pipeline.convert(folder / "run")
    return folder / "run"


def test_a_target_that_is_not_installed_is_refused_with_what_installs_it(run: Path) -> None:
    before = tree(run)
    said = re.escape('Reader is not installed; pip install "no_such_reader>=3.1"')
    with pytest.raises(MissingRuntimeError, match=said):
        pipeline.export(run, target="absent")
    code, out, err = shell("export", str(run), "--target", "absent")
    assert (code, out) == (2, "")
    assert 'pip install "no_such_reader>=3.1"' in err
    assert tree(run) == before


def test_an_unproven_file_says_so_in_its_metadata_and_its_report(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    code, out, err = shell(
        *("export", str(run), "--target", "absent", "--unproven", "--output", str(path), "--json")
    )
    reason = 'Reader is not installed; pip install "no_such_reader>=3.1"'
    assert code == 0
    assert f"WARNING: not run, so not proven: {reason}" in err
    report = json.loads((tmp_path / "m.export.json").read_text())
    assert report == json.loads(out)
    assert report["unproven"] == reason
    assert report["file_bytes"] == path.stat().st_size
    assert "top1_agreement" not in report
    assert read_metadata(onnx.load(str(path)))["unproven"] == reason


def test_all_targets_get_files_and_those_without_runtime_are_listed(
    run: Path, tmp_path: Path
) -> None:
    code, out, _ = shell(
        *("export", str(run), "--target", "all", "--output", str(tmp_path / "m.onnx"), "--json")
    )
    said = json.loads(out)
    assert code == 0
    assert list(said) == ["onnxruntime", "absent", "seven"]
    assert said["absent"] == {
        "error": 'Reader is not installed; pip install "no_such_reader>=3.1"',
        "kind": "not_installed",
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        *("m.onnxruntime.onnx", "m.onnxruntime.export.json"),
        *("m.seven.onnx", "m.seven.export.json"),
    }
    for name in ("onnxruntime", "seven"):
        assert json.loads((tmp_path / f"m.{name}.export.json").read_text()) == said[name]
        assert said[name]["target"] == name
        assert said[name]["images"] == 500
    assert "unproven" not in read_metadata(onnx.load(str(tmp_path / "m.seven.onnx")))


def test_what_is_installed_is_proven_whatever_may_stay_unproven(
    run: Path, quick: list[tuple[str, Path]], tmp_path: Path
) -> None:
    pipeline.export(run, output=tmp_path / "m.onnx", unproven=True)
    assert quick == [("onnxruntime", tmp_path / "m.onnx")]


def test_a_target_whose_kernels_saturate_gets_an_integer_model_of_its_own(
    run: Path, quick: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, own = run / "integer.safetensors", run / "integer.seven.safetensors"
    own.unlink(missing_ok=True)
    before = usual.read_bytes()
    assert pipeline.export(run).to_json()["may_saturate"] != []
    assert not own.exists()
    report = pipeline.export(run, target="seven")

    assert report.to_json()["may_saturate"] == []
    converted = json.loads((run / "integer.seven.convert.json").read_text())
    assert converted["no_saturation"]["channels"]
    assert usual.read_bytes() == before
    assert report.file == str(run / "model.seven.onnx")
    assert json.loads((run / "model.seven.export.json").read_text()) == report.to_json()
    assert quick == [("onnxruntime", run / "model.onnx"), ("seven", run / "model.seven.onnx")]

    monkeypatch.setattr(pipeline, "to_integer", None)  # nothing is converted again
    pipeline.export(run, target="seven")
    os.utime(own, (1, 1))  # older than the checkpoint, which says nothing
    pipeline.export(run, target="seven")
    own.write_bytes(own.read_bytes()[:-1] + b"?")
    with pytest.raises(TypeError):
        pipeline.export(run, target="seven")


@pytest.mark.usefixtures("quick")
def test_a_lone_integer_model_that_could_saturate_is_refused_with_the_command(
    run: Path, tmp_path: Path
) -> None:
    path, own = tmp_path / "i.safetensors", tmp_path / "i.seven.safetensors"
    path.write_bytes((run / "integer.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"would saturate in .* on processors without VNNI") as why:
        pipeline.export(path, target="seven")
    assert f"qtool convert RUN --no-saturation --output {own}" in str(why.value)

    pipeline.convert(run, output=own, no_saturation=True)
    assert pipeline.export(own, target="seven").file == str(tmp_path / "i.seven.seven.onnx")


@pytest.mark.usefixtures("quick")
def test_one_target_that_disagrees_fails_the_command_after_the_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disagree(monkeypatch, "onnxruntime")
    (tmp_path / "m.onnxruntime.onnx").write_bytes(b"a good file")
    code, out, _ = shell(
        *("export", str(run), "--target", "all", "--output", str(tmp_path / "m.onnx"), "--json")
    )
    said = json.loads(out)
    assert code == 1
    assert said["onnxruntime"]["kind"] == "failed"
    assert "the runtime is wrong" in said["onnxruntime"]["error"]
    assert said["seven"]["target"] == "seven"
    assert (tmp_path / "m.onnxruntime.onnx").read_bytes() == b"a good file"
    assert (tmp_path / "m.seven.onnx").read_bytes() == b"a new file"
    report = json.loads((tmp_path / "m.onnxruntime.export.json").read_text())
    assert report["disagreement"] == "the runtime is wrong"


@pytest.mark.usefixtures("quick")
def test_a_good_file_of_each_target_stays_where_its_runtime_disagrees(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"a good file")
    for name in ("onnxruntime", "seven"):
        disagree(monkeypatch, name)
        with pytest.raises(ExportError, match="the runtime is wrong"):
            pipeline.export(run, output=tmp_path / "m.onnx", target=name)
    assert (tmp_path / "m.onnx").read_bytes() == b"a good file"


@pytest.mark.usefixtures("quick")
def test_files_for_all_targets_are_named_after_the_usual_one(run: Path) -> None:
    made = pipeline.export_for_all(run).to_json()
    files = {name: said.get("file") for name, said in made.items()}
    assert files == {
        "onnxruntime": str(run / "model.onnxruntime.onnx"),
        "absent": None,
        "seven": str(run / "model.seven.onnx"),
    }


def test_a_source_that_is_not_there_is_refused_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        pipeline.export_for_all(tmp_path / "no")


def test_no_file_at_all_is_a_failure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TARGETS, "_members", {"absent": absent, "onnxruntime": absent})
    code, out, _ = shell(
        *("export", str(run), "--target", "all", "--output", str(tmp_path / "m.onnx"))
    )
    assert code == 1
    assert "no_such_reader" in "".join(out.split())
    assert list(tmp_path.iterdir()) == []

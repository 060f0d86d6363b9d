"""`qtool sensitivity`: its files, its table and its errors."""

import json
from contextlib import chdir
from pathlib import Path

import pytest

from qtool.reports.results import read_finished
from qtool.reports.sensitivity import Sensitivity
from tests.kit import ABSENT, refused, shell, write_recipe

SMALL = {
    "data.image_size": 28,
    "quantization.weights.range": "absmax",
    "quantization.activations.range": "min_max",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a command's files, and what it printed."""
    folder = tmp_path_factory.mktemp("sensitivity")
    path = write_recipe(folder, SMALL)
    with chdir(folder):
        code, out, err = shell("sensitivity", str(path), "--bits", "2,8", "--json")
    assert code == 0, err
    return folder / "runs" / "r-sensitivity", out


def test_the_command_prints_what_its_file_says(measured: tuple[Path, str]) -> None:
    folder, out = measured
    assert json.loads(out) == json.loads((folder / "sensitivity.json").read_text())
    result = read_finished(folder / "sensitivity.json")
    assert isinstance(result, Sensitivity)
    assert [layer.layer for layer in result.layers] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert [width.bits for width in result.layers[0].widths] == [2, 8]
    for layer in result.layers:
        narrow, wide = layer.widths
        assert narrow.bytes < wide.bytes or layer.weights < 1000
        assert narrow.error_alone is not None
        assert wide.error_alone is not None
        assert narrow.error_alone > wide.error_alone
    uniform = {point.bits_mean: point.bytes for point in result.curve if point.uniform}
    assert list(uniform) == [2, 8]
    assert uniform[8] == sum(layer.widths[1].bytes for layer in result.layers)
    own = sum(layer.widths[0].bytes for layer in result.layers)
    assert own < uniform[2] < own + 2000  # with a table that all share


def test_a_wider_layer_among_narrow_ones_has_its_own_weights_again(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, SMALL | {"quantization.weights.bits": 2})
    with chdir(tmp_path):
        code, out, err = shell("sensitivity", str(path), "--bits", "2,8", "--json")
    assert code == 0, err
    errors = {
        layer["layer"]: [width["error_with_rest"] for width in layer["widths"]]
        for layer in json.loads(out)["layers"]
    }
    assert all(wide < 0.99 * narrow for narrow, wide in errors.values())


def test_the_page_shows_each_layer(measured: tuple[Path, str]) -> None:
    page = (measured[0] / "report.html").read_text()
    for text in ("conv1", "fc3", "loss by bits a weight", "8 bits", "48,000"):
        assert text in page
    assert "<script" not in page


def test_what_is_shown_is_read_back(measured: tuple[Path, str]) -> None:
    code, out, err = shell("inspect", str(measured[0] / "sensitivity.json"))
    assert code == 0, err
    assert "everything else in float" in out
    assert "widths for the whole network" in out


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({}, ["--bits", "0,4"], "not a list of whole numbers from 1 to 8, such"),
        ({}, ["--bits", "4,9"], "whole numbers from 1 to 8"),
        ({"quantization.weights": ABSENT}, [], "no layer's weights are quantized"),
    ],
)
def test_a_wrong_command_is_told(
    tmp_path: Path, changes: dict[str, object], more: list[str], said: str
) -> None:
    path = write_recipe(tmp_path, changes)
    assert said in refused(tmp_path, "sensitivity", str(path), *more)


def test_a_run_is_not_written_into(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(path.read_text())
    said = refused(tmp_path, "sensitivity", str(path), "--output", "run")
    assert "holds a run; choose another --output" in said

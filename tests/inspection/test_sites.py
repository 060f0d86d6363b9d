"""`qtool inspect` shows the values of recipes, runs and integer models."""

from pathlib import Path

import pytest

from qtool.inspection.inspect import inspect_source
from tests.kit import as_json, shell, write_recipe

AT_VALUES = {
    "model": {"name": "resnet20"},
    "quantization.activations.place": "every_value",
    "quantization.overrides": [{"match": "*:relu0", "activations": {"bits": 5}}],
}


@pytest.mark.slow
def test_a_recipe_a_run_and_an_integer_model_show_the_same_values(tmp_path: Path) -> None:
    path, run = write_recipe(tmp_path, AT_VALUES), tmp_path / "run"
    for argv in (("train", str(path), "--run-dir", str(run)), ("convert", str(run))):
        code, _, err = shell(*argv, "--device", "cpu")
        assert code in (0, None), err
    planned, trained, converted = (
        [row for row in inspect_source(source).sites if row.grid != "float"]
        for source in (path, run, run / "integer.safetensors")
    )
    sites = [row.site for row in planned]
    assert sites[:2] == [":input0", ":relu0"]
    assert [row.site for row in trained] == sites
    assert all(row.scale for row in trained)
    bits = {row.site: row.grid.partition(" ")[0] for row in trained}
    assert {bits[site] for site in sites if site.endswith(":relu0")} == {"5-bit"}
    in_codes = {row.site: row.grid for row in trained if row.join} | {
        row.site: row.grid for row in trained if row.site == ":input0"
    }
    # a join that a ReLU follows stands at its own call, what it makes at the ReLU's
    assert len([row for row in converted if row.join]) == len(in_codes) - 1
    assert {row.site: row.grid for row in converted if row.site in in_codes}.items() <= (
        in_codes.items()
    )


def test_the_table_and_the_json_of_a_recipe_tell_of_values(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, AT_VALUES)
    _, out, _ = shell("inspect", str(path))
    assert "made by" in out
    assert "shares the grid of" not in out
    _, out, _ = shell("inspect", str(path), "--json")
    rows = as_json(out)["sites"]
    assert rows[0] | {"how": ""} == {
        "site": ":input0",
        "made_by": "the model's input",
        "read_by": ["conv1"],
        "grid": "8-bit full",
        "how": "",
    }


def test_places_at_layers_leave_the_json_as_it_was(tmp_path: Path) -> None:
    _, out, _ = shell("inspect", str(write_recipe(tmp_path)), "--json")
    assert "sites" not in as_json(out)

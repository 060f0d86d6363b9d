"""Findings in result files and on a terminal."""

import pytest

from qtool.reports.health import SHOWN, Finding, show_health
from qtool.reports.results import Conversion, Export, Summary
from tests.golden.faces import RESULTS


@pytest.mark.parametrize(
    ("kind", "file"), [(Summary, "summary"), (Conversion, "convert"), (Export, "export")]
)
def test_health_is_the_last_key_of_a_file_and_old_files_have_none(
    kind: type[Summary] | type[Conversion] | type[Export], file: str
) -> None:
    old = kind.read(RESULTS / f"{file}.json")
    assert old.health == []
    assert "health" not in old.to_json()
    said = {"layer": "fc", "kind": "few_codes", "says": "1 of 2 rows"}
    new = kind.model_validate({**old.to_json(), "health": [said]})
    assert list(new.to_json())[-1] == "health"
    assert new.to_json()["health"] == [said]


def test_findings_are_notes_a_few_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    show_health([])
    assert capsys.readouterr().err == ""
    many = [Finding(layer=f"layer{k}", kind="all_zero", says="all 0") for k in range(SHOWN + 3)]
    show_health([Finding(layer="", kind="constant_output", says="the output is the same"), *many])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "note: the output is the same"
    assert lines[1] == "note: layer0: all 0"
    assert len(lines) == SHOWN + 1
    assert lines[-1].startswith("note: 4 more findings")

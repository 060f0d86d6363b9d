"""Help, tables and schemas are as they were; `python -m tests.golden --write` keeps them anew."""

import json

import pytest

from qtool.reports import results as reports
from qtool.reports.inspections import PlanRow
from tests.golden.faces import KINDS, RESULTS, WIDTH, kept, now, results

FILES = (  # of runs and comparisons
    *("summary", "summary_without_profile", "convert", "straight_through", "export"),
    *("comparison", "runs", "equivalence"),
)


def test_people_see_what_they_saw_and_no_torch_is_loaded_for_it() -> None:
    texts, imported = now()
    golden = kept()
    assert texts.keys() == golden.keys()
    for name, text in texts.items():
        assert text.splitlines() == golden[name].splitlines(), name
    assert imported.isdisjoint({"torch", "torchvision", "numpy", "onnx", "onnxruntime"})


def test_every_line_fits_its_screen_and_shows_no_code_of_a_terminal() -> None:
    for name, text in kept().items():
        assert "\x1b" not in text
        if name.startswith("help/"):
            assert max(map(len, text.splitlines())) <= WIDTH, name


@pytest.mark.parametrize(("name", "rows"), list(results()), ids=lambda value: str(value)[:40])
def test_a_result_is_written_again_as_it_was_read(name: str, rows: list[reports.Result]) -> None:
    path = RESULTS / f"{name}.json"
    plain = [row.to_json() for row in rows]
    text = json.dumps(plain if isinstance(rows[0], PlanRow) else plain[0], indent=2)
    assert f"{text}\n" == path.read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_itself_which_result_it_holds(name: str) -> None:
    assert type(reports.read(RESULTS / f"{name}.json")) is KINDS[name]

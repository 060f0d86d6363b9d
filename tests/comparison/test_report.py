"""What is shown of a comparison beside its comparison.json, and what of its folder is read."""

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from qtool.comparison.execution.trials import ComparisonFolder
from qtool.comparison.report import Shown, is_comparison, page_of, read_comparison, write_page
from qtool.errors import InputError
from qtool.reports.comparisons import Arm, Comparison
from qtool.reports.pages.evidence import Evidence
from qtool.runs.kept.folder import RunFolder
from tests.comparison.test_trials import RECIPE
from tests.reports.pages import comparison, line, summary


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    """A comparison with its trials, and a run beside it that is none of its business."""
    made, result = ComparisonFolder(tmp_path / "c"), comparison()
    result.write(made.report)
    for arm in result.arms:
        for seed, value in zip(result.seeds, arm.values, strict=True):
            keep_run(made.run(arm.name, seed), arm.name, value)
    keep_run(RunFolder(tmp_path / "beside" / "seed-0"), "a secret", 0.9)
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Evidence]:
    """Return what pages are told by folders, in place of drawing them."""
    found: list[Evidence] = []

    def page(result: Comparison, shown: Evidence) -> str:
        found.append(shown)
        return f"<p>{result.verdict}</p>"

    monkeypatch.setattr("qtool.reports.pages.comparison.comparison_page", page)
    monkeypatch.setattr("qtool.comparison.report.pictured", list)
    return found


def keep_run(run: RunFolder, name: str, accuracy: float | None) -> None:
    run.path.mkdir(parents=True)
    summary(accuracy).write(run.summary)
    run.write_metrics([line(1, 0.25), line(2, accuracy)])
    run.recipe.write_text(f"# {name}\n{json.dumps(RECIPE)}")
    run.environment.write_text(json.dumps({"torch": "2", "command": f"qtool compare {name}"}))


@pytest.mark.usefixtures("told")
def test_only_what_is_asked_for_is_written(folder: ComparisonFolder, tmp_path: Path) -> None:
    result = comparison()
    table, figure = tmp_path / "arms.csv", tmp_path / "f.svg"
    Shown().write(result, folder)
    assert not (folder.page.exists())
    assert not (table.exists())
    assert not (figure.exists())
    Shown(page=True, figure=figure, table=table).write(result, None)  # nothing is kept
    assert not folder.page.exists()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["straight_through", "better_one"]
    assert figure.read_text().startswith("<?xml")
    Shown(page=True).write(result, folder)
    assert folder.page.read_text() == "<p>better_one is better.</p>"


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (lambda place: Shown(figure=place / "f.jpg"), r"f\.jpg: no figure; give a name that ends"),
        (lambda place: Shown(figure=place), "no figure"),
        (lambda place: Shown(table=place), "--csv names a file"),
    ],
    ids=["another kind", "a folder", "a folder for a table"],
)
def test_what_cannot_be_written_is_told_before_any_work(shown, why, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        shown(tmp_path).refuse_unless_writable()


def test_a_page_tells_what_its_trials_folders_do(
    folder: ComparisonFolder, told: list[Evidence]
) -> None:
    page_of(comparison(), folder)
    (shown,) = told
    assert [str(trial) for trial in shown.trials] == [
        f"{arm}, seed {seed}" for arm in ("straight_through", "better_one") for seed in (0, 1)
    ]
    ends = [trial.history[-1].validation_accuracy for trial in shown.trials]
    assert ends == [0.5, 0.52, 0.6, 0.64]
    assert list(shown.recipes) == ["straight_through", "better_one"]
    assert shown.recipes["better_one"].startswith("# better_one")
    assert shown.environment["torch"] == "2"
    assert shown.command == "qtool compare straight_through"  # as the first trial was begun
    page_of(comparison(), folder, (), "qtool compare now")
    assert told[-1].command == "qtool compare now"


def test_a_trial_that_is_damaged_or_gone_is_left_out_of_the_page(
    folder: ComparisonFolder, told: list[Evidence]
) -> None:
    folder.run("better_one", 1).summary.write_text("{")
    folder.run("straight_through", 0).environment.write_text("{")
    folder.run("straight_through", 1).recipe.unlink()
    page_of(comparison(), folder)
    (shown,) = told
    known = [(str(trial), trial.summary is not None) for trial in shown.trials]
    assert known == [
        ("straight_through, seed 0", True),
        ("better_one, seed 0", True),
        ("better_one, seed 1", False),
    ]
    assert shown.trials[-1].history == []
    assert shown.command == "qtool compare better_one"


def test_names_of_arms_lead_nowhere_else(folder: ComparisonFolder, told: list[Evidence]) -> None:
    first, _ = comparison().arms
    spy = Arm(name="../beside", values=[0.9, None], mean=0.9, std=None, failed=1)
    result = comparison().model_copy(update={"arms": [first, spy], "differences": []})
    assert folder.run(spy.name, 0).holds_run()
    page_of(result, folder)
    assert {trial.arm for trial in told[-1].trials} == {first.name}
    inside = ComparisonFolder(folder.path.parent)
    moved = result.model_copy(update={"arms": [spy.model_copy(update={"name": "beside"})]})
    page_of(moved, inside)
    assert told[-1].recipes["beside"].startswith("# a secret")


def test_a_page_on_finished_runs_reads_those_that_are_runs(
    folder: ComparisonFolder, tmp_path: Path, told: list[Evidence]
) -> None:
    sources = [tmp_path / "beside" / "seed-0", tmp_path / "f.onnx"]
    arms = [Arm(name=str(source), values=[0.5], mean=0.5, std=None, failed=0) for source in sources]
    result = Comparison(kind="runs", recipe=None, seeds=[], arms=arms, differences=[], verdict="-")
    page_of(result, folder, sources)
    assert [(trial.arm, trial.seed) for trial in told[-1].trials] == [(str(sources[0]), None)]
    page_of(result, folder)  # where they lie nobody says
    assert told[-1].trials == []


def test_what_holds_a_comparison_is_read_by_its_folder_or_its_file(
    folder: ComparisonFolder, tmp_path: Path
) -> None:
    assert is_comparison(folder.path)
    assert is_comparison(folder.report)
    assert not is_comparison(tmp_path)
    assert read_comparison(folder.path) == read_comparison(folder.report) == comparison()
    run = folder.run("better_one", 0)
    with pytest.raises(InputError, match=r"summary\.json: not the report of a finished comparison"):
        read_comparison(run.summary)
    folder.report.write_text("{")
    with pytest.raises(InputError, match=r"comparison\.json"):
        read_comparison(folder.path)


@pytest.mark.usefixtures("told")
def test_a_page_is_written_of_what_has_one(folder: ComparisonFolder, tmp_path: Path) -> None:
    output = tmp_path / "p.HTML"
    for source in (folder.path, folder.report):
        write_page(source, output)
        assert output.read_text() == "<p>better_one is better.</p>"
        output.unlink()
    for source, name, why in (
        (folder.path, "p.pdf", r"p\.pdf: not the name of a page; give one that ends in \.html"),
        (tmp_path / "none", "p.html", r"none: no such file or folder; give a run or a comparison"),
        (folder.run("better_one", 0).recipe, "p.html", r"recipe\.yaml: no page is made of it"),
        (tmp_path, "p.html", "not a run folder"),
    ):
        with pytest.raises(InputError, match=why):
            write_page(source, tmp_path / name)
        assert not (tmp_path / name).exists()

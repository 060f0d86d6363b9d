"""The commands to begin with: `qtool list`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qtool.data.augmentations import AUGMENTATIONS
from qtool.files.lock import only_writer
from qtool.known import FAMILIES
from tests.cli.test_app import CHILD, HEAVY
from tests.generated_files import TABLES
from tests.kit import as_json, shell
from tests.self_description import names_of

SUMMARY = {
    "status": "finished",
    "run": "b",
    "epochs": 8,
    "seconds": 70.5,
    "parameters": 100,
    "weight_bits_mean": 4.5,
    "validation_accuracy": 0.9125,
    "validation_loss": 0.1,
    "train_accuracy": 0.99,
    "train_loss": 0.05,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_listed_as_its_table_has_it(family: str) -> None:
    code, out, err = shell("list", family, "--json")
    listed = as_json(out)
    assert (code, err, listed["kind"]) == (0, "", family)
    names = [each["name"] for each in listed["choices"]]
    if family == "augmentations":
        assert names == AUGMENTATIONS.names()
        return
    own = names_of(TABLES[family])
    assert names[: len(own)] == own
    assert (len(names) > len(own)) == (family == "models")  # torchvision's
    for each in listed["choices"][: len(own)]:
        assert [p["name"] for p in each["parameters"]] == list(
            TABLES[family].parameters(each["name"])
        )


def test_people_see_names_parameters_and_what_published_weights_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = shell("list", "models")
    assert code == 0
    assert "0.8 M" not in out  # of qtool's own models the docstrings say it
    row = next(line for line in out.splitlines() if "│ resnet18 " in line)
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["11.7 M", "69.76 %"]
    assert "stem: auto" in out
    assert "columns (required)" in out


@pytest.mark.parametrize("argv", [["models", "--json"], ["runs", "here"]], ids=" ".join)
def test_lists_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, "list", *argv],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert HEAVY.intersection(ended.stderr.splitlines()[-1].split()) == set()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["runs", "nowhere"], "no such folder; give the folder that your runs lie in"),
        ([], "say which: models, data, estimators"),
        (["modls"], "'modls' cannot be listed; did you mean models?"),
        (["models", "runs"], "goes with runs, not with models"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_listed_is_told(
    argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = shell("list", *argv)
    assert code == 2
    assert said in err


def test_runs_are_listed_with_status_accuracy_bits_and_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    running = SUMMARY | {"status": "running", "validation_accuracy": None}
    texts = {"b": json.dumps(SUMMARY), "c/arm/seed-0": json.dumps(running), "a": "{"}
    for name, text in texts.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("seed: 0\n")
        (folder / "summary.json").write_text(text)
        os.utime(folder / "summary.json", (1_700_000_000, 1_700_000_000))  # 2023-11-14 22:13:20 UTC
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "summary.json").write_text(json.dumps(SUMMARY))  # no recipe

    code, out, err = shell("list", "runs", "--json")
    assert (code, err) == (0, "")
    rows = {row["run"]: row for row in as_json(out)["runs"]}
    assert list(rows) == ["runs/a", "runs/b", "runs/c/arm/seed-0"]
    assert [row["status"] for row in rows.values()] == ["damaged", "finished", "stopped"]
    assert rows["runs/b"]["validation_accuracy"] == 0.9125
    assert rows["runs/b"]["weight_bits_mean"] == 4.5
    assert rows["runs/b"]["date"].startswith(("2023-11-14T", "2023-11-15T"))

    with only_writer(tmp_path / "runs/c/arm/seed-0"):
        _, out, _ = shell("list", "runs", "--json")
    assert as_json(out)["runs"][2]["status"] == "running"

    _, out, _ = shell("list", "runs")
    row = next(line for line in out.splitlines() if "runs/b" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:5] == ["runs/b", "finished", "91.25 %", "4.50", "8"]

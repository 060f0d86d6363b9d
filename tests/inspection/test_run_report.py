"""The page on a run: when it is written, and that nothing it shows depends on it."""

import json
import sys
from pathlib import Path

import pytest

from tests.kit import shell, write_recipe

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run, its page and its recipe."""
    folder = tmp_path_factory.mktemp("page")
    recipe = write_recipe(folder)
    argv = ["train", str(recipe), "--run-dir", str(folder / "run"), "--device", "cpu"]
    assert shell(*argv)[0] == 0
    return folder


def test_training_ends_with_a_page_that_a_finished_run_keeps(folder: Path) -> None:
    page = folder / "run" / "report.html"
    before = page.read_text()
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert f"{100 * summary['validation_accuracy']:.2f} %" in before
    assert "Where it errs" in before
    argv = ["train", str(folder / "r.yaml"), "--run-dir", str(folder / "run"), "--resume"]
    stamp = page.stat().st_mtime_ns
    assert shell(*argv)[0] == 0
    assert page.stat().st_mtime_ns == stamp


def test_the_page_is_the_same_from_the_files_alone(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "again.html"
    code, _, err = shell("inspect", str(folder / "run"), "--output", str(made))
    assert (code, err) == (0, "")
    assert made.read_text() == (folder / "run" / "report.html").read_text()


def test_a_page_that_cannot_be_drawn_is_said_and_the_run_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    argv = ["train", str(folder / "r.yaml"), "--run-dir", str(folder / "bare"), "--device", "cpu"]
    code, _, err = shell(*argv)
    assert code == 0
    assert "report.html: not written, for matplotlib is not installed" in " ".join(err.split())
    assert not (folder / "bare" / "report.html").exists()
    assert (folder / "bare" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("source", "output", "why"),
    [
        ("run", "page.pdf", "not the name of a page; give one that ends in .html"),
        (
            "r.yaml",
            "page.html",
            "train or convert it first, and give that folder",
        ),
        ("nothing", "page.html", "no such file or folder; give a run or a comparison"),
    ],
)
def test_what_has_no_page_is_refused(source: str, output: str, why: str, folder: Path) -> None:
    code, out, err = shell("inspect", str(folder / source), "--output", str(folder / output))
    assert (code, out) == (2, "")
    assert err.strip().endswith(why)
    assert not (folder / output).exists()

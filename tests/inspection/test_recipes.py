"""What is said of a recipe that only its data would complete."""

from pathlib import Path

import pytest

from qtool.inspection.inspect import inspect_source
from tests.kit import write_recipe


def test_classes_that_only_files_tell_are_said_to_be_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_files = {"data": {"name": "image_folder", "folder": "photographs"}}
    path = write_recipe(tmp_path, of_files)
    assert inspect_source(path).classes == 1000
    said = capsys.readouterr().err
    assert "only the files of image_folder tell how many classes there are" in said
    assert f"1000 are assumed here; `qtool check {path}` counts them" in said

    imagenet = of_files["data"] | {"labels": "imagenet"}
    assert inspect_source(write_recipe(tmp_path, {"data": imagenet})).classes == 1000
    assert inspect_source(write_recipe(tmp_path)).classes == 10
    assert "assumed" not in capsys.readouterr().err

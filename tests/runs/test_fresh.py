"""Whether an integer model is of the run as it is now is told by content, never by times."""

import json
import os
import zipfile
from functools import partial
from pathlib import Path
from shutil import copyfile, copytree

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qtool import pipeline
from qtool.errors import DamagedFileError, InputError
from qtool.files.checksums import sha256_of
from qtool.files.safetensors_digest import refuse_unless_as_written
from qtool.integer.format import made_of
from qtool.runs.converted.integer import up_to_date_integer
from qtool.runs.kept.folder import RunFolder
from qtool.runs.kept.sound import integer_is_fresh, why_not_fresh
from tests.kit import shell, write_recipe

OLD = {"format": "3", "made_of": "", "sha256": ""}  # as before these were kept
QUICK = {"training.epochs": 2, "data.train_samples": 32, "training.learning_rate": 0.2}


convert = partial(pipeline.convert, device="cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, converted; beside it the same after one epoch, converted."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline.train(write_recipe(folder, QUICK), run_dir=folder / "run", device="cpu")
    earlier = copytree(folder / "run", folder / "earlier")
    (earlier / "checkpoint.previous.pt").replace(earlier / "checkpoint.pt")
    for run in (folder / "run", earlier):
        pipeline.convert(run, device="cpu")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copytree(trained, tmp_path / "run")


def plain(path: Path, **changes: str) -> None:
    """Write an integer model as another program would: its digest is not right any more."""
    with safe_open(path, "pt") as file:
        said = {**file.metadata(), **changes}
    save_file(load_file(path), path, {key: value for key, value in said.items() if value})


def test_an_integer_model_says_which_checkpoint_it_was_made_of(run: Path) -> None:
    assert made_of(run / "integer.safetensors") == sha256_of(run / "checkpoint.pt")
    assert integer_is_fresh(RunFolder(run))
    (run / "integer.safetensors").unlink()
    assert why_not_fresh(RunFolder(run), run / "integer.safetensors") == "missing"


@pytest.mark.parametrize("how", ["touched", "made old", "copied without times", "unzipped"])
def test_times_say_nothing(how: str, run: Path, trained: Path, tmp_path: Path) -> None:
    integer = run / "integer.safetensors"
    if how == "touched":
        (run / "checkpoint.pt").touch()
    elif how == "made old":
        os.utime(integer, (100, 100))
    elif how == "copied without times":
        integer.unlink()
        copyfile(trained / "integer.safetensors", integer)
        os.utime(integer, (100, 100))
        (run / "checkpoint.pt").touch()
    else:
        with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
            for path in run.iterdir():
                archive.write(path, path.name)
        run = tmp_path / "unzipped"
        zipfile.ZipFile(tmp_path / "run.zip").extractall(run)
    assert integer_is_fresh(RunFolder(run))


def test_one_of_an_earlier_epoch_is_told_and_made_anew(run: Path, trained: Path) -> None:
    integer, expected = run / "integer.safetensors", (run / "integer.safetensors").read_bytes()
    copyfile(trained.parent / "earlier" / "integer.safetensors", integer)
    os.utime(integer, (2**32, 2**32))  # newer than anything
    assert not integer_is_fresh(RunFolder(run))
    code, out, err = shell("compare", "runs", str(run), "--json")
    assert code in (0, None), err
    assert json.loads(out)["arms"][0]["bytes"] is None
    assert f"{integer}: made of another checkpoint.pt; its size is left out" in err
    code, out, err = shell("export", str(run), "--json")
    assert code in (0, None), err
    assert f"{integer}: made of another checkpoint.pt; converting {run} again" in err
    assert integer.read_bytes() == expected


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("a bit", "damaged, it is not what was written (SHA-256)"),
        ("format 3", "does not say which checkpoint.pt it was made of"),
        ("no digest", "damaged, it is not what was written (SHA-256)"),
        ("cut off", "not an integer model ("),
    ],
)
def test_a_damaged_or_older_one_is_named_and_made_anew(
    damage: str, why: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    integer = run / "integer.safetensors"
    expected = integer.read_bytes()
    if damage == "a bit":
        data = bytearray(expected)
        data[-10] ^= 1
        integer.write_bytes(data)
    elif damage == "cut off":
        integer.write_bytes(expected[:-10])
    else:
        plain(integer, **OLD if damage == "format 3" else {"sha256": ""})
    assert up_to_date_integer(run, convert) == integer
    err = capsys.readouterr().err
    assert f"{integer}: {why}" in err
    assert f"; converting {run} again" in err
    assert integer.read_bytes() == expected


def test_where_nothing_was_trained_the_recipe_is_what_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path, {"data.train_samples": 32})
    monkeypatch.chdir(tmp_path)
    pipeline.convert(Path("r.yaml"), device="cpu")
    folder = RunFolder(Path("runs/r"))
    expected, own = folder.integer.read_bytes(), folder.integer_for("openvino")
    assert integer_is_fresh(folder)
    pipeline.convert(folder.recipe, output=own, no_saturation=True, device="cpu")
    assert why_not_fresh(folder, own) == ""
    pipeline.convert(
        write_recipe(tmp_path, {"data.train_samples": 32, "seed": 1}), output=own, device="cpu"
    )
    assert why_not_fresh(folder, own) == "made of another network than integer.safetensors"
    data = bytearray(expected)
    data[-10] ^= 1
    folder.integer.write_bytes(data)
    up_to_date_integer(folder.path, convert)
    err = capsys.readouterr().err
    assert "damaged, it is not what was written (SHA-256); converting runs/r again" in err
    assert folder.integer.read_bytes() == expected
    plain(folder.integer, **OLD)
    assert integer_is_fresh(folder)  # there is nothing to go by


def test_the_same_conversion_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pipeline.convert(trained, output=tmp_path / f"{name}.safetensors", device="cpu")
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    refuse_unless_as_written(tmp_path / "a.safetensors")


def test_a_file_that_is_given_is_refused(run: Path) -> None:
    integer = run / "integer.safetensors"
    data = bytearray(integer.read_bytes())
    for place in range(0, len(data), 997):
        data[place] ^= 2
        integer.write_bytes(data)
        with pytest.raises(InputError) as caught:
            made_of(integer)
        assert str(integer) in str(caught.value)
        data[place] ^= 2
    data[-1] ^= 1
    integer.write_bytes(data)
    with pytest.raises(DamagedFileError, match="not what was written"):
        made_of(integer)
    for command in (["export"], ["inspect"]):
        code, out, err = shell(*command, str(integer))
        assert (code, out) == (2, ""), err

"""Recipes of others: what they say of data and code is not believed; what the user says is."""

import hashlib
import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from qtool import pipeline
from qtool.export.proof import latency
from qtool.runs.machine import host_name
from tests.kit import refused, shell, tree, write_recipe

SAID = "--data-root FOLDER says where its data are"
ESCAPE, MARKUP = "\x1b]0;t\x07\x1b[31m\u202e", "[/x] [red]"
MY = """
from pathlib import Path
Path(MARK).write_text("ran")
def soft(grad, u, low, high):
    return grad * ((low <= u) & (u <= high))
"""


def write_arrays(path: Path, classes: int = 3) -> None:
    """Write 64 training and 40 validation images of 16 x 16 pixels."""
    rng = np.random.default_rng(0)
    labels = {"y_train": np.arange(64) % classes, "y_test": np.arange(40) % classes}
    images = {f"x_{key[2:]}": rng.integers(0, 256, (len(v), 16, 16)) for key, v in labels.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **labels, **{key: value.astype(np.uint8) for key, value in images.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose data and estimator lie beside it, its run, and what was made of that."""
    folder = tmp_path_factory.mktemp("mine")
    write_arrays(folder / "data" / "a.npz")
    mark = folder / "mark"
    (folder / "my.py").write_text(MY.replace("MARK", repr(str(mark))))
    changes = {
        "data": {"name": "arrays", "file": "a.npz", "root": "data", "batch_size": 32, "workers": 0},
        "quantization.weights.estimator": "my.py:soft",
    }
    recipe = write_recipe(folder, changes)
    pipeline.train(recipe, run_dir=folder / "run", device="cpu")
    assert mark.read_text() == "ran"
    mark.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "export_float", lambda model, image, path, batch: None)
        patch.setattr(latency, "latencies", lambda paths, *rest, threads=1: [1.0 for _ in paths])
        pipeline.export(folder / "run")
    return folder


@pytest.fixture(autouse=True)
def nothing_ran(made: Path) -> None:
    (made / "mark").unlink(missing_ok=True)


@pytest.fixture
def theirs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run as of another machine, without its data, in an empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = Path(shutil.copytree(made / "run", tmp_path / "here" / "run"))
    said = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(said | {"host": f"not-{host_name()}"}))
    return run


def no_mark(made: Path) -> bool:
    return not (made / "mark").exists()


def test_a_run_says_on_which_machine_it_was_trained(made: Path) -> None:
    said = json.loads((made / "run" / "environment.json").read_text())
    assert said["host"] == host_name()


def test_a_run_of_this_machine_keeps_its_data_wherever_it_lies(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "run", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert shell("convert", "moved", "--device", "cpu")[0] in (0, None)
    assert no_mark(made)


# each reads the data of a run of another machine
NEED = [
    ["convert", "run", "--device", "cpu"],
    ["compare", "runs", "run/model.onnx"],
    pytest.param(["export", "run", "--output", "again.onnx"], marks=pytest.mark.slow),
    pytest.param(["bench", "run", "--rounds", "2"], marks=pytest.mark.slow),
    pytest.param(
        ["export", "run/integer.safetensors", "--output", "again.onnx"], marks=pytest.mark.slow
    ),
]


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("command", NEED, ids=" ".join)
def test_data_of_others_are_read_where_the_user_says(
    command: list[str], made: Path, theirs: Path
) -> None:
    assert SAID in refused(theirs.parent, *command)
    for said in (["--data-root", str(made / "data")], ["--set", f"data.root={made / 'data'}"]):
        code, _, err = shell(*command, *said)
        assert code in (0, None), err
    assert no_mark(made)


def test_a_file_of_others_is_as_accurate_as_its_run(made: Path, theirs: Path) -> None:
    beside = pipeline.compare_runs([theirs / "model.onnx"], data_root=made / "data")
    expected = json.loads((made / "run" / "export.json").read_text())["accuracy_runtime"]
    assert beside.arms[0].mean == expected


def test_a_run_of_others_goes_on_where_the_user_says(made: Path, theirs: Path) -> None:
    shutil.copy(made / "my.py", theirs.parent)
    (theirs / "summary.json").unlink()
    command = ["train", "run/recipe.yaml", "--run-dir", "run", "--device", "cpu", "--resume"]
    assert shell(*command)[0] == 2
    code, _, err = shell(*command, "--data-root", str(made / "data"))
    assert code in (0, None), err


@pytest.mark.parametrize("link", ["a.npz", "data"])
def test_links_out_of_the_folder_are_not_followed(link: str, made: Path, theirs: Path) -> None:
    given = theirs / "data"  # of a stranger, too
    if link == "data":
        given.symlink_to(made / "data")  # what the user names may be a link
        assert shell("convert", "run", "--data-root", "run/data")[0] in (0, None)
        return
    given.mkdir()
    (given / link).symlink_to(made / "data" / link)
    message = refused(theirs.parent, "convert", "run", "--data-root", "run/data")
    assert "run/data/a.npz: leads out of run/data" in message


def test_only_data_of_a_run_are_given_anew(theirs: Path) -> None:
    message = refused(theirs.parent, "convert", "run", "--set", "quantization.weights.bits=2")
    assert "run stays as it was made; only its data can be given" in message


def test_data_of_other_classes_are_refused(theirs: Path) -> None:
    write_arrays(theirs.parent / "other" / "a.npz", classes=5)
    for command in (["convert", "run"], ["compare", "runs", "run/model.onnx"]):
        message = refused(theirs.parent, *command, "--data-root", "other")
        assert "its network was made for 3 classes, and the data have 5" in message


def with_recipe(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Let an ONNX file name another recipe."""
    model = onnx.load(str(path))
    for item in [item for item in model.metadata_props if item.key == "qtool.sha256"]:
        model.metadata_props.remove(item)  # whoever writes a recipe writes a digest, too
    for item in model.metadata_props:
        if item.key == "qtool":
            said = json.loads(item.value)
            change(said["recipe"])
            item.value = json.dumps(said)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("name", ["mnist", "cifar10", "image_folder"])
def test_a_file_downloads_nothing_makes_nothing_and_walks_nothing(
    name: str, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = theirs.parent / "made-by-a-file"
    monkeypatch.setenv("QTOOL_DATA", str(theirs.parent / "none"))

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be asked for")

    monkeypatch.setattr(urllib.request, "urlopen", never)
    monkeypatch.setattr("qtool.data.image_folder._class_folders", never)
    more = {"folder": "/"} if name == "image_folder" else {}
    path = with_recipe(
        theirs / "model.onnx",
        lambda recipe: recipe.update(data={"name": name, "root": str(root), **more}),
    )
    for said in ([], ["--data-root", "run"]):
        message = refused(theirs.parent, "compare", "runs", str(path), *said)
        assert "--data-root FOLDER says" in message


COMMANDS = [
    ["inspect", "run"],
    ["inspect", "run/recipe.yaml"],
    ["inspect", "run/integer.safetensors"],
    ["compare", "runs", "run", "run/model.onnx"],
    ["convert", "run"],
    ["convert", "run/recipe.yaml", "--output", "i.safetensors"],
    pytest.param(["export", "run", "--output", "m.onnx"], marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_code_runs_where_nothing_is_trained(
    command: list[str], made: Path, theirs: Path
) -> None:
    shutil.copy(made / "my.py", theirs.parent)  # even the very file
    more = [] if command[0] == "inspect" else ["--data-root", str(made / "data")]
    code, _, err = shell(*command, *more)
    assert code in (0, None), err
    assert no_mark(made)


def rewritten(run: Path, name: str) -> None:
    """Let the recipe of a run name another estimator."""
    said = yaml.safe_load((run / "recipe.yaml").read_text())
    said["quantization"]["weights"]["estimator"] = {"name": name}
    (run / "recipe.yaml").write_text(yaml.safe_dump(said))


TRAIN = ["train", "run/recipe.yaml", "--run-dir", "run", "--resume", "--device", "cpu"]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("the copy alone", "--run-code runs the copy that run keeps"),
        ("a link to the copy", "--run-code runs the copy that run keeps"),
        ("another file here", "my.py: not the file that run was trained with"),
        ("no digest", "my.py: run keeps no SHA-256 of it, so it does not run"),
        ("a path", "give the name of a file beside the recipe, without folders"),
    ],
)
@pytest.mark.parametrize("command", [TRAIN, ["convert", "run", "--to", "straight_through"]])
def test_code_that_is_not_the_users_does_not_run(
    case: str, why: str, command: list[str], made: Path, theirs: Path
) -> None:
    here = theirs.parent / "my.py"
    (theirs / "summary.json").unlink()
    if case == "a link to the copy":
        here.symlink_to(theirs / "my.py")
    elif case == "another file here":
        here.write_text((made / "my.py").read_text() + "\n")
    elif case == "no digest":
        shutil.copy(made / "my.py", here)
        said = json.loads((theirs / "environment.json").read_text())
        (theirs / "environment.json").write_text(json.dumps(said | {"estimator_sources": {}}))
    elif case == "a path":
        rewritten(theirs, f"{made}/my.py:soft")
    assert why in refused(theirs.parent, *command)
    assert no_mark(made)


def test_the_file_of_the_users_own_runs_by_its_sha256(
    made: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = theirs.parent / "own"
    own.mkdir()
    shutil.copy(made / "my.py", own)
    digest = hashlib.sha256((own / "my.py").read_bytes()).hexdigest()
    said = json.loads((theirs / "environment.json").read_text())
    assert said["estimator_sources"] == {"my.py": digest}
    (theirs / "summary.json").unlink()
    monkeypatch.setenv("PYTHONPATH", str(own))
    code, _, err = shell(*TRAIN, "--data-root", str(made / "data"))
    assert code in (0, None), err
    assert not no_mark(made)


SOURCES = ["run/model.onnx", "run/integer.safetensors", "run", "run/recipe.yaml"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("evil", [ESCAPE, MARKUP, ESCAPE + MARKUP])
def test_names_of_others_are_text(source: str, evil: str, theirs: Path) -> None:
    if source == "run":
        path = theirs / "summary.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"run": evil, "error": evil}))
    elif source.endswith("yaml"):
        rewritten(theirs, f"{evil}.py:soft")
    else:
        path = theirs.parent / source
        path = path.rename(path.with_name(f"{evil.replace('/', '')}{path.suffix}"))
        source = str(path)
    for command in (["inspect", source], ["compare", "runs", source], ["export", source]):
        _, out, err = shell(*command)
        assert "Traceback" not in err
        assert {"\x1b", "\x07", "\u202e"} & set(out + err) == set()


def test_what_is_refused_leaves_everything_alone(theirs: Path) -> None:
    before = tree(theirs.parent)
    for command in (["convert", "run"], ["compare", "runs", "run/model.onnx"]):
        assert shell(*command)[0] == 2
    assert tree(theirs.parent) == before

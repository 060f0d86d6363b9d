"""`qtool init`: a recipe for a folder of images, or a copy of one that ships."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

from qtool.models.published import can_be_had
from qtool.recipe.file import load_recipe
from qtool.runs.built.build import check_against_network, make_data
from qtool.start import chosen
from qtool.start.chosen import FEW, choose
from qtool.start.looked import Looked, look_at
from qtool.start.shipped import shipped
from tests.cli.test_app import CHILD, HEAVY
from tests.kit import as_json, shell

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "can_be_had", lambda *_: False)


def photographs(folder: Path, count: int = 5, size: tuple[int, int] = (100, 80)) -> Path:
    for shade, name in enumerate(("a cat", "dog: large")):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", size, (80 * shade, k, 0)).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_s_recipe_loads_and_reads_its_images_without_the_broken_one(here: Path) -> None:
    photographs(here / "my photos")
    (here / "my photos" / "a cat" / "3.png").write_bytes(b"<html>")

    code, out, err = shell("init", "my photos", "--json")

    assert (code, err) == (0, "")
    made = as_json(out)
    assert made["recipe"] == "my_photos.yaml"
    assert made["classes"] == ["a cat", "dog: large"]
    assert made["bad_files"] == ["my photos/a cat/3.png"]
    text = (here / "my_photos.yaml").read_text()
    assert "a cat (4), dog: large (5)" in text
    assert "# 1 that cannot be read: my photos/a cat/3.png" in text
    recipe = load_recipe(here / "my_photos.yaml")
    check_against_network(recipe, "my_photos.yaml")
    data = make_data(recipe, torch.device("cpu"))
    assert data.class_names == ("a cat", "dog: large")
    assert data.validation_split is not None
    sizes = made["training_images"], made["validation_images"]
    assert sizes == (7, 2)  # a fifth of 9 judges
    assert len(data.validation_split) == 2


def test_a_recipe_says_where_its_images_are_from_its_own_place(here: Path) -> None:
    photographs(here / "photos" / "all")
    assert shell("init", "photos/all", "--output", "photos/r.yaml")[0] == 0
    assert shell("init", "photos/all", "--output", "elsewhere/r.yaml")[0] == 0
    assert "  root: all\n" in (here / "photos" / "r.yaml").read_text()
    apart = load_recipe(here / "elsewhere" / "r.yaml")
    assert apart.data.root == str((here / "photos" / "all").resolve())


TABLES: dict[str, tuple[dict[str, str], list[str]]] = {
    "one": ({"labels.csv": "file,kind\n0.png,x\n1.png,y\n2.png,x\n3.png,y\n"}, ["x", "y"]),
    "several": ({"t.csv": "0.png,x|y\n1.png,y\n2.png,x\n3.png,z\n"}, ["x", "y", "z"]),
    "columns": ({"t.csv": "image,x,y\n0.png,1,1\n1.png,0,1\n2.png,1,0\n3.png,0,0\n"}, ["x", "y"]),
    "halves": ({"train.csv": "0.png,x\n1.png,y\n", "valid.csv": "2.png,x\n3.png,y\n"}, ["x", "y"]),
    "missing": ({"t.csv": "0.png,x\n1.png,y\n2.png,x\n9.png,y\n"}, ["x", "y"]),
}
KEYS: dict[str, dict[str, str]] = {
    "one": {"file": "labels.csv"},
    "several": {"file": "t.csv", "labels": "several"},
    "columns": {"file": "t.csv", "labels": "several"},
    "halves": {"file": "train.csv", "validation_file": "valid.csv"},
    "missing": {"file": "t.csv", "bad_files": "skip"},
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_csv_says_the_classes_where_folders_do_not(kind: str, here: Path) -> None:
    (here / "p" / "images").mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (20, 20), (60 * k, 0, 0)).save(here / "p" / "images" / f"{k}.png")
    texts, classes = TABLES[kind]
    for name, text in texts.items():
        (here / "p" / name).write_text(text)
    code, out, err = shell("init", "p", "--json")
    assert code == 0, err
    assert as_json(out)["classes"] == classes
    recipe = load_recipe(here / "p.yaml")
    assert (recipe.data.name, recipe.data.params) == ("image_table", KEYS[kind])
    several = "labels" in KEYS[kind]
    assert recipe.training.loss.name == ("binary_cross_entropy" if several else "cross_entropy")
    if kind == "several":
        assert "x (2), y (2), z (1)" in (here / "p.yaml").read_text()


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_halves_of_images_without_classes_take_theirs_from_csv_files(
    where: str, here: Path
) -> None:
    for half in ("train", "valid", "test"):
        (here / "p" / half).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (20, 20), (60 * k, 0, 0)).save(here / "p" / half / f"{k}.png")
        names = "" if where == "inside" else f"{half}/"
        rows = "".join(f"{names}{k}.png, {k % 2}, {int(k > 0)}\n" for k in range(3))
        file = f"{half}/_classes.csv" if where == "inside" else f"{half}.csv"
        (here / "p" / file).write_text(f"filename, x, y\n{rows}")
    code, _, err = shell("init", "p")
    assert code == 0, err
    data = load_recipe(here / "p.yaml").data
    named = [f"{h}/_classes.csv" if where == "inside" else f"{h}.csv" for h in ("train", "valid")]
    wanted = {"file": named[0], "validation_file": named[1], "labels": "several"}
    assert data.params == wanted


def test_folders_of_classes_count_where_a_csv_lies_beside_them(here: Path) -> None:
    photographs(here / "p")
    (here / "p" / "sizes.csv").write_text("file,size\n0.png,9\n1.png,8\n")
    assert as_json(shell("init", "p", "--json")[1])["classes"] == ["a cat", "dog: large"]
    assert load_recipe(here / "p.yaml").data.name == "image_folder"


def test_a_csv_that_is_not_clear_is_told(here: Path) -> None:
    photographs(here / "p" / "all")
    (here / "p" / "t.csv").write_text("file,size,kind\nall/a cat/0.png,9,x\nall/a cat/1.png,8,y\n")
    code, _, err = shell("init", "p")
    assert code == 2
    assert "t.csv: which of size, kind are the labels?" in err


def test_the_folder_is_this_one_unless_one_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photographs(here / "cats"))
    code, out, _ = shell("init")
    assert code == 0
    assert out.splitlines()[-2:] == [
        "wrote cats.yaml",
        "next: qtool check cats.yaml; qtool run cats.yaml",
    ]
    root = load_recipe(Path("cats.yaml")).data.root
    assert root is not None
    assert Path(root).samefile(here / "cats")


@pytest.mark.parametrize(
    ("images", "side", "published", "model", "weights", "size"),
    [
        (48, 480, True, "resnet18", "DEFAULT", 224),
        (48, 480, False, "resnet20", "none", 64),
        (FEW + 1, 480, False, "resnet18", "none", 128),
        (48, 30, True, "resnet20", "none", 32),
        (48, 8, True, "resnet20", "none", 16),
        (FEW + 1, 64, True, "resnet18", "none", 64),
    ],
)
def test_network_and_size_follow_number_and_size_of_images(
    images: int,
    side: int,
    published: bool,
    model: str,
    weights: str,
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chosen, "can_be_had", lambda *_: published)
    found = look_at(photographs(tmp_path / "p", count=2))
    monkeypatch.setattr(Looked, "sizes", property(lambda _: (images, 10)))
    made = choose(replace(found, side=side))
    assert (made.model, made.weights, made.image_size) == (model, weights, size)
    assert made.batch_size * 5 <= images
    assert made.epochs * images >= 1000


def test_the_copies_that_ship_are_all_recipes_and_their_commands_name_the_copy(here: Path) -> None:
    files = sorted(path.stem for path in RECIPES.rglob("*.yaml"))
    assert sorted(shipped()) == files
    for name in files:
        assert shell("init", "--from", name)[0] == 0
        assert load_recipe(here / f"{name}.yaml") == load_recipe(shipped()[name])
    text = (here / "digits.yaml").read_text()
    assert "#   qtool train digits.yaml\n" in text
    assert "recipes/" not in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere"], "nowhere: no such folder; give a folder that has a folder of images"),
        (["file.yaml"], "file.yaml: a file; give a folder"),
        (["empty"], "empty: holds no folders; needed are train/ and val/, or one folder per class"),
        (["--from", "digit"], "no recipe 'digit' comes with qtool; did you mean digits?"),
        (["photos", "--output", "file.yaml"], "file.yaml: is there already; choose another"),
        (["photos", "--output", "r.json"], "r.json: not the name of a recipe"),
        (["photos", "--from", "digits"], "excludes FOLDER"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_begun_is_told(argv: list[str], said: str, here: Path) -> None:
    photographs(here / "photos", count=1)
    (here / "empty").mkdir()
    (here / "file.yaml").write_text("mine")
    code, _, err = shell("init", *argv)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert (here / "file.yaml").read_text() == "mine"
    assert not list(here.glob("*.json"))


def test_a_copy_takes_no_torch(here: Path) -> None:
    words = [sys.executable, "-c", CHILD, "init", "--from", "digits_blend", "--output", "b.yaml"]
    place = os.environ | {"PYTHONPATH": str(RECIPES.parent)}
    ended = subprocess.run(words, capture_output=True, text=True, check=True, env=place)
    assert HEAVY.intersection(ended.stderr.splitlines()[-1].split()) == set()
    assert (here / "b.yaml").is_file()


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/there.pth" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_weights_can_be_had_from_the_cache_or_a_server_that_answers(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Weights:
        url = ""

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(models, "get_model_weights", lambda _: {"DEFAULT": Weights})
    for url, had in (("/there.pth", True), ("/gone.pth", False)):
        Weights.url = server + url
        assert can_be_had("any", "DEFAULT") is had
    Weights.url = "http://127.0.0.1:9/nobody.pth"
    assert not can_be_had("any", "DEFAULT")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "nobody.pth").touch()
    assert can_be_had("any", "DEFAULT")

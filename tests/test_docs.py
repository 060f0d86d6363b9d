"""The documents, the changelog and the code say the same."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import get_args

import onnx
import onnxruntime
import pytest
import torch
import yaml

from qtool import __version__
from qtool.numerics.grid import Kind
from qtool.recipe import Recipe
from qtool.recipe.extends import joined
from qtool.recipe.plain import read_recipe_file
from qtool.settings.section import check
from qtool.settings.user_estimators import load_estimator
from tests import docs
from tests import self_description as said
from tests.generated_files import FILES

ROOT = said.ROOT
TEXTS = {path: path.read_text() for path in docs.DOCUMENTS}
README = TEXTS[ROOT / "README.md"]
RECIPES = TEXTS[ROOT / "recipes" / "README.md"]
NUMERICS = TEXTS[ROOT / "qtool" / "numerics" / "README.md"]
EXPORT = TEXTS[ROOT / "qtool" / "export" / "README.md"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
ROOMS = sorted(path.parent for path in (ROOT / "qtool").rglob("*/__init__.py"))
COMMANDS = said.commands()
# which document is the reference of which table
REFERENCES = {
    title: {"targets": EXPORT, "estimators": NUMERICS}.get(title, RECIPES) for title in docs.TABLES
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(text: str, kind: str = "") -> list[str]:
    """Return the code blocks of a document that are marked as of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# Generated blocks


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_generated_block_is_current(path):
    assert docs.written(TEXTS[path]) == TEXTS[path], "run: python -m tests.docs --write"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_generated_file_is_current(path):
    assert docs.is_current(path, FILES[path]()), "run: python -m tests.docs --write"


def test_every_block_stands_in_one_document():
    asked = [name for text in TEXTS.values() for _, name in docs.MARKED.findall(text)]

    assert sorted(asked) == sorted(docs.BLOCKS)


def test_a_marker_that_is_not_closed_is_an_error():
    for text in TEXTS.values():
        assert len(docs.MARKED.findall(text)) == text.count("<!-- generated:")
        assert text.count("<!-- generated:") == text.count("<!-- end -->")


# What must stand in its reference


@pytest.mark.parametrize("title", docs.TABLES)
def test_every_choice_has_a_row_in_its_reference_with_its_parameters(title):
    table, lines = docs.TABLES[title], REFERENCES[title].splitlines()
    for name in said.names_of(table):
        row = next((line for line in lines if line.startswith(f"| `{name}` |")), "")
        assert row, name
        for parameter in table.parameters(name):
            assert re.search(rf"`{parameter}[`:]", row), f"{name}: {parameter}"


def test_every_recipe_key_has_a_row_with_its_docstring():
    keys = dict(said.recipe_keys())
    assert {"seed", "quantization.overrides[].match", "training.epochs"} < set(keys)
    for key, field in keys.items():
        rows = [line for line in RECIPES.splitlines() if line.startswith(f"| `{key}` |")]
        assert len(rows) == 1, key
        assert " ".join(str(field.description).split()) in rows[0]


def test_every_grid_has_a_row():
    for kind in get_args(Kind):
        assert f"\n| {kind} |" in RECIPES


def test_every_command_is_in_the_readme_and_every_option_in_that_of_the_command_line():
    options = (ROOT / "qtool/cli/README.md").read_text()
    assert {"qtool train", "qtool compare runs", "qtool inspect"} < set(COMMANDS)
    for name, command in COMMANDS.items():
        assert f"| `{name} " in README
        flags = [flag for flags in said.options(command).values() for flag in flags]
        assert "--json" in flags
        for flag in flags:
            assert f"`{flag}`" in options, f"{name} {flag}"


@pytest.mark.parametrize("room", ROOMS, ids=relative)
def test_every_module_is_named_in_the_docstring_of_its_room(room):
    files = said.module_docstring(room / "__init__.py").partition("\n")[2]
    modules = [path.stem for path in room.glob("*.py") if path.stem != "__init__"]

    assert [name for name in modules if not re.search(rf"\b{name}\b", files)] == []


def test_every_room_and_every_module_beside_the_rooms_stands_in_the_readme():
    beside = [path for path in (ROOT / "qtool").glob("*.py") if not path.name.startswith("__")]
    rooms = [f"{room.name}/" for room in ROOMS if room.parent.name == "qtool"]
    for name in rooms + [path.name for path in beside]:
        assert re.search(rf"^[─┌├└] {re.escape(name)} ", README, re.MULTILINE), name


# What a document may not do


def test_the_readme_is_short_and_narrow():
    lines = README.splitlines()

    assert len(lines) < 300
    assert max(map(len, lines)) <= 160


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_relative_link_points_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[path]) + re.findall(r'src="([^"]+)"', TEXTS[path])
    for link in links:
        place, _, anchor = link.partition("#")
        if place.startswith(("http:", "https:")):
            continue
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert ROOT in (target, *target.parents), link
        assert not anchor or anchor in anchors(target), link


def test_no_row_of_figures_stands_in_two_places():
    seen: dict[str, Path] = {}
    for path, text in TEXTS.items():
        for line in docs.MARKED.sub("", text).splitlines():
            row = " ".join(line.replace("│", "|").split())
            if row.startswith("|") and len(re.findall(r"\d[.,]\d", row)) > 1:
                assert row not in seen, f"{relative(path)} and {relative(seen[row])}: {row}"
                seen[row] = path


# What a document shows works


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::FutureWarning")
def test_the_tour_in_python_runs_and_its_file_says_what_the_integer_model_says(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (tour,) = fenced(README, "python")
    names: dict = {}

    exec(tour, names)

    onnx.checker.check_model("model.onnx", full_check=True)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    given = session.run(None, {session.get_inputs()[0].name: names["images"].numpy()})[0]
    expected = names["integer"](names["images"]).detach()
    torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-4, atol=1e-4)


def test_the_estimator_of_ones_own_is_one(tmp_path):
    source = next(code for code in fenced(RECIPES, "python") if "my_estimators.py" in code)
    (shown,) = re.findall(r"^estimator: (\{name: .*\})$", RECIPES, re.MULTILINE)
    (tmp_path / "my_estimators.py").write_text(source)
    choice = yaml.safe_load(shown)

    load_estimator(choice["name"], tmp_path, {"sharpness": choice["sharpness"]})


def test_what_is_said_of_the_map_is_so():
    (example,) = [code for code in fenced(NUMERICS, "python") if "import" in code]

    exec(example, {})


def test_every_whole_recipe_in_a_document_is_one():
    shown = [yaml.safe_load(code) for code in fenced(RECIPES, "yaml")]
    whole = [data for data in shown if "training" in data]

    assert whole
    for data in whole:
        if (base := data.pop("extends", None)) is not None:
            path = ROOT / "recipes" / Path(base).name
            data = joined(read_recipe_file(path), data)
        check(Recipe, data | {"training": data["training"] | {"learning_rate": 1e-3}}, "README")


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_command_that_is_shown_is_one_with_its_options(path):
    words = r"""(?:^|&& )(?:\$ )?(qtool (?:'[^']*'|"[^"]*"|[^\n'"#])*)"""
    code = "\n".join(fenced(TEXTS[path])).replace("\\\n", " ")
    for line in re.findall(words, code, re.MULTILINE):
        given = shlex.split(line)
        command = COMMANDS[" ".join(given[: 3 if given[1] == "compare" else 2])]
        flags = {flag for flags in said.options(command).values() for flag in flags}
        assert {word for word in given if word.startswith("--")} <= flags, line
        for word in given:
            assert not word.startswith("recipes/") or (ROOT / word).is_file(), line


# The changelog, and the recipes


def test_this_version_is_the_newest_in_the_changelog():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG, flags=re.MULTILINE)

    assert versions[0] == __version__
    assert "## [Unreleased]" in CHANGELOG


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_opens_with_its_command_and_its_result(path):
    head = path.read_text().split("seed:")[0]

    assert f"qtool train {path.relative_to(ROOT)}" in head
    result = re.search(r"^# (Result|Validation accuracy)\b.*", head, re.MULTILINE | re.DOTALL)
    assert result is not None
    assert re.search(r"\d|not measured", result[0])

"""A user's own class or function: found by file or module, and blamed for its own mistakes."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtool.errors import RecipeError
from qtool.registry import Registry
from qtool.settings.user_code import UserCode
from qtool.settings.user_parameters import as_member, settable
from qtool.settings.user_parts import load_part

NET = """
from __future__ import annotations

class Net:
    def __init__(self, num_classes, width: int = 1, *, names: list[str] | None = None):
        self.said = num_classes, width, names

def make(num_classes, **others):
    return others

def fails(num_classes):
    raise KeyError("depth")

limit = 3
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was imported, and be in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write(path: Path, text: str = NET) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def refusal(name: str, code: UserCode) -> str:
    with pytest.raises(RecipeError) as caught:
        load_part(name, code, "model")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def beside(folder: Path) -> UserCode:
    return UserCode.beside(folder / "r.yaml")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("net.py:Net", "net.py"),
        ("net:Net", "net.py"),
        ("own_package.models:Net", "own_package/models.py"),
        ("own_package:Net", "own_package/__init__.py"),
        ("own_package.inner.models:Net", "own_package/inner/models.py"),
    ],
)
def test_a_class_lies_beside_the_recipe(name: str, file: str, tmp_path: Path) -> None:
    write(tmp_path / file)
    part = load_part(name, beside(tmp_path), "model")
    assert part.call(10, width=3).said == (10, 3, None)
    assert part.source.path == tmp_path / file
    assert part.source.digest == hashlib.sha256(NET.encode()).hexdigest()
    assert part.place == f"{tmp_path / file}:4: Net"


def test_a_module_lies_in_the_working_directory_too() -> None:
    write(Path("mine/models.py"))
    assert load_part("mine.models:Net", beside(Path("elsewhere")), "model").call(1).said[0] == 1


def test_a_module_imports_what_lies_beside_it_and_is_imported_anew_once_it_changed(
    tmp_path: Path,
) -> None:
    write(tmp_path / "sizes.py", "width = 7")
    write(tmp_path / "pack" / "blocks.py", "from sizes import width")
    write(tmp_path / "pack" / "nets.py", "from pack.blocks import width\ndef make(): return width")
    code = beside(tmp_path)
    assert load_part("pack.nets:make", code, "model").call() == 7
    write(tmp_path / "pack" / "nets.py", "def make(): return 8")
    assert load_part("pack.nets:make", code, "model").call() == 8


def test_what_is_installed_is_imported_with_its_version() -> None:
    part = load_part("yaml.loader:SafeLoader", UserCode(()), "model")
    assert part.function.__name__ == "SafeLoader"
    assert part.source.version == sys.modules["yaml"].__version__


def test_nothing_but_what_is_named_is_imported(tmp_path: Path) -> None:
    for name in ("one_net", "other_net"):
        write(tmp_path / f"{name}.py")
    load_part("one_net:Net", beside(tmp_path), "model")
    assert "one_net" in sys.modules
    assert "other_net" not in sys.modules


def test_two_parts_of_a_file_are_of_one_run_of_it(tmp_path: Path) -> None:
    write(tmp_path / "net.py")
    code = beside(tmp_path)
    one, two = (load_part(f"net.py:{name}", code, "model").function for name in ("Net", "make"))
    assert one.__module__ == two.__module__
    assert sys.modules[one.__module__].Net is one


# name -> what is said
WRONG = {
    "net.py:Ne": "net.py: has no class or function Ne; did you mean Net?",
    "net.py:zebra": "net.py: has no class or function zebra; choose one of: Net, make, fails",
    "net.py:limit": "net.py: limit is int, not a class or function",
    "net:Ne": "net.py: has no class or function Ne; did you mean Net?",
    "nett.py:Net": "nett.py: no such file; a model lies beside its recipe",
    "nett:Net": "nett: no such module; did you mean net?",
    "pack.mdels:Net": "pack.mdels: no such module; did you mean pack.models?",
    "zebra.models:Net": "zebra.models: no such module; a module lies beside its recipe or in the",
    "sub/net.py:Net": "sub/net.py:Net: give the name of a file beside the recipe, without folders",
    "broken.py:Net": "broken.py:2: not Python: invalid syntax",
    "pack.broken:Net": "pack/broken.py:2: SyntaxError: invalid syntax",
    "lonely.py:Net": "lonely.py:1: ModuleNotFoundError: No module named 'net'; a file runs alone: "
    "name it as a module, lonely:NAME, to import others",
    "pack.needs:Net": "pack/needs.py:2: ModuleNotFoundError: No module named 'zebra'",
    "leaves.py:Net": "leaves.py:1: SystemExit: 3",
    "json:Net": "json.py: another module of that name is loaded, from",
}


@pytest.mark.parametrize(("name", "why"), WRONG.items(), ids=WRONG.keys())
def test_a_mistake_says_where_and_what_would_be_right(name: str, why: str, tmp_path: Path) -> None:
    for file in ("net.py", "pack/__init__.py", "pack/models.py", "json.py"):
        write(tmp_path / file)
    for file in ("broken.py", "pack/broken.py"):
        write(tmp_path / file, "\ndef (:\n")
    write(tmp_path / "lonely.py", "import net\n")
    write(tmp_path / "leaves.py", "raise SystemExit(3)\n")
    write(tmp_path / "pack" / "needs.py", "\nimport zebra\n")
    said = refusal(name, beside(tmp_path))
    assert why in said


def test_what_a_part_raises_is_shown_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "net.py")
    part = load_part("net.py:fails", beside(tmp_path), "model")
    with pytest.raises(RecipeError) as caught:
        part.call(3)
    assert str(caught.value) == f"{tmp_path / 'net.py'}:12: KeyError: 'depth'"


def test_a_recipe_sets_what_the_signature_has_but_for_what_is_given(tmp_path: Path) -> None:
    write(tmp_path / "net.py")
    table: Registry = Registry("model")
    for name in ("net.py:Net", "net.py:make"):
        part = load_part(name, beside(tmp_path), "model")
        table.add(as_member(part, part.call, settable(part, {"num_classes"})), name)
    assert list(table.parameters("net.py:Net")) == ["width", "names"]
    wrong = dict(table.problems("net.py:Net", {"wdth": 2, "width": 1.5, "names": ["a", 3]}))
    assert wrong == {
        "wdth": "net.py:Net has no parameter wdth; did you mean width?",
        "width": "1.5 is not a whole number",
        "names": "3 is not text; put it in quotes, as it was written, for text",
    }
    assert table.problems("net.py:make", {"anything": 3}) == []
    assert table.build("net.py:make", anything=3)(num_classes=2) == {"anything": 3}


# a run of another's: what it names, and what lies where -> what is said, "" where it runs
def of_run(folder: Path, digests: dict[str, str], *, run_copies: bool = False) -> UserCode:
    return UserCode.of_run(folder, digests, run_copies=run_copies)


def test_a_module_that_another_run_names_is_the_very_one_or_does_not_run(tmp_path: Path) -> None:
    run = tmp_path / "here" / "run"
    run.mkdir()
    digest = hashlib.sha256(NET.encode()).hexdigest()
    given = {"mine": digest, "json.tool": digest}
    assert "--run-code imports what is installed" in refusal("json.tool:main", of_run(run, given))
    assert "--run-code imports what is installed" in refusal("mine:Net", of_run(run, given))
    write(run / "mine.py")
    assert "--run-code imports what is installed" in refusal("mine:Net", of_run(run, given))
    write(Path("mine.py"), NET + "\n")
    why = f"not the file that {run} was trained with"
    assert why in refusal("mine:Net", of_run(run, given))
    assert "mine" not in sys.modules
    write(Path("mine.py"))
    assert "keeps no SHA-256 of it" in refusal("mine:Net", of_run(run, {}))
    assert load_part("mine:Net", of_run(run, given), "model").call(3).said[0] == 3


def test_run_code_imports_a_changed_module_and_what_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "here" / "run"
    run.mkdir()
    write(Path("mine.py"), NET)
    code = of_run(run, {"mine": "0" * 64}, run_copies=True)
    assert load_part("mine:Net", code, "model").call(3).said[0] == 3
    assert "not the file that" in capsys.readouterr().err
    assert load_part("json.tool:main", code, "model").function.__name__ == "main"
    assert capsys.readouterr().err == ""
    changed = of_run(run, {"json.tool": "0" * 64}, run_copies=True)
    assert load_part("json.tool:main", changed, "model").function.__name__ == "main"
    assert "not the file that" in capsys.readouterr().err

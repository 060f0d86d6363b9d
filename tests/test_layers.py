"""The contracts on imports in pyproject.toml hold what they say: what is planted breaks them."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from itertools import pairwise, permutations
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
LAYERS = [layer.split(" | ") for layer in CONTRACTS[0]["layers"]]  # from the top to the bottom
DOWN, RUNS, ONNX, TARGETS, STAGES, WITHOUT_TORCH, GRAPH = (
    "Imports point down the list",
    "A run's rooms point down, too",
    "Only export and the inspection of ONNX files touch ONNX",
    "Only targets run files",
    "Stages take plain arguments, not recipes",
    "What opens without torch",
    "The graph knows torch and the known limits",
)
# contract -> (module in which something is planted, what is planted, the module that it imports)
PLANTED = {
    DOWN: [("numerics/grid", "from qtool.cli.options import AsJson", "qtool.cli.options")],
    RUNS: [
        ("runs/kept/sound", "from qtool.runs.access import OWN", "qtool.runs.access"),
        ("runs/built/build", "from qtool.runs.run import Run", "qtool.runs.run"),
        ("runs/converted/export", "from qtool.runs.train import train_run", "qtool.runs.train"),
    ],
    ONNX: [
        ("integer/layers", "import onnx", "onnx"),
        ("inspection/inspect", "import onnx", "onnx"),
        ("comparison/equivalence/agreement", "from onnx import numpy_helper", "onnx"),
        ("graph/recording", "import onnx_ir as ir", "onnx_ir"),
        ("pipeline", "from onnx_ir import passes", "onnx_ir"),
    ],
    TARGETS: [
        ("export/proof/gate", "import onnxruntime", "onnxruntime"),
        ("comparison/equivalence/agreement", "import onnxruntime", "onnxruntime"),
        ("cli/app", "import openvino", "openvino"),
    ],
    STAGES: [
        *(
            (f"{room}/__init__", "from qtool.recipe import Recipe", "qtool.recipe")
            for room in (
                *("training", "export", "integer", "quantizers", "data", "models"),
                "post_training",
            )
        ),
        ("conversion/to_integer", "from qtool.recipe.file import load_recipe", "qtool.recipe.file"),
    ],
    WITHOUT_TORCH: [
        ("reports/tables", "import torch", "torch"),
        ("files/whole", "from torch import Tensor", "torch"),
        ("cli/options", "import torch", "torch"),
        ("cli/app", "from torchvision import models", "torchvision"),
        ("problems", "import torch", "torch"),
        ("recipe/plain", "import torch", "torch"),
        ("recipe/early", "import torch", "torch"),
        ("limits", "from torch import nn", "torch"),
        ("limit", "import torch", "torch"),
        ("word_table", "import torch", "torch"),
        ("errors", "import torch", "torch"),
        ("images/preprocess", "import torch", "torch"),
        ("export/targets/target", "from torch import Tensor", "torch"),
        ("prediction/classifier", "import torch", "torch"),
        ("prediction/onnx_file", "import torch", "torch"),
        ("prediction/predict", "from torchvision import transforms", "torchvision"),
        ("world/launched", "import torch", "torch"),
        ("known", "import torch", "torch"),
    ],
    GRAPH: [
        ("graph/recording", "from qtool import errors", "qtool.errors"),
        ("graph/sites/frames", "from qtool.problems import report", "qtool.problems"),
    ],
}


def module(name: str) -> str:
    return f"qtool.{name.removesuffix('/__init__').replace('/', '.')}"


def lint(tree: Path) -> tuple[set[str], str]:
    """Return the names of the contracts that a tree breaks, and all that is said of them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=tree,
        env=environment | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = ended.stdout + ended.stderr
    names = {contract["name"] for contract in CONTRACTS}
    states = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", said, flags=re.MULTILINE))
    assert set(states) == names, said
    broken = {name for name, state in states.items() if state == "BROKEN"}
    assert ended.returncode == int(bool(broken)), said
    return broken, said


def plant(tree: Path, planted: Iterable[tuple[str, str]]) -> list[str]:
    """Add imports at the end of modules; return where each one now stands, as `module (l.N)`."""
    places = []
    for name, line in planted:
        path = tree / "qtool" / f"{name}.py"
        text = f"{path.read_text()}{line}\n"
        path.write_text(text)
        places.append((module(name), f"(l.{len(text.splitlines())})"))
    return places


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package and of the contracts."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "qtool", tmp_path / "qtool", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def file_of(layer: str) -> str:
    return f"{layer}/__init__" if (ROOT / "qtool" / layer).is_dir() else layer


def test_every_contract_is_kept(tree: Path) -> None:
    broken, said = lint(tree)
    assert broken == set(), said


def test_every_contract_has_something_planted_against_it() -> None:
    assert [contract["name"] for contract in CONTRACTS] == list(PLANTED)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_breaks_its_contract(tree: Path, name: str) -> None:
    places = plant(tree, [(where, line) for where, line, _ in PLANTED[name]])
    broken, said = lint(tree)
    assert name in broken
    for (source, at), (_, _, imported) in zip(places, PLANTED[name], strict=True):
        assert f"{source} -> {imported} {at}" in said


def test_every_room_that_a_contract_speaks_of_has_something_planted_in_it() -> None:
    for contract in CONTRACTS[1:]:
        planted = {module(where) for where, _, _ in PLANTED[contract["name"]]}
        for source in contract.get("source_modules", contract.get("containers")):
            assert any(name == source or name.startswith(f"{source}.") for name in planted), source


def test_no_layer_may_import_the_one_above_it_nor_one_beside_it(tree: Path) -> None:
    climbs = [
        (below, above) for upper, lower in pairwise(LAYERS) for above in upper for below in lower
    ]
    climbs += [pair for layer in LAYERS for pair in permutations(layer, 2)]
    assert len(climbs) > 2 * len(LAYERS)
    places = plant(tree, [(file_of(low), f"import qtool.{high}") for low, high in climbs])
    broken, said = lint(tree)
    assert DOWN in broken
    for (low, high), (source, at) in zip(climbs, places, strict=True):
        assert f"qtool.{low} is not allowed to import qtool.{high}:" in said
        assert f"{source} -> qtool.{high} {at}" in said


@pytest.mark.parametrize("name", ["utils", "common"])
def test_a_module_that_nobody_put_in_a_layer_is_refused(tree: Path, name: str) -> None:
    (tree / "qtool" / f"{name}.py").write_text('"""What is left over."""\n')
    broken, said = lint(tree)
    assert broken == {DOWN}
    assert f"- qtool.{name}\n" in said


LOADS_TORCHVISION = {"qtool/data/official.py"}  # which is itself loaded where it is needed


def test_torchvision_which_takes_seconds_to_load_is_loaded_where_it_is_needed_only() -> None:
    """At the top of a module it would be loaded by every command."""
    loads = set()
    for path in (ROOT / "qtool").rglob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in statement.names]
                names += [getattr(statement, "module", None) or ""]
                if any(name.split(".")[0] == "torchvision" for name in names):
                    loads.add(path.relative_to(ROOT).as_posix())

    assert loads == LOADS_TORCHVISION

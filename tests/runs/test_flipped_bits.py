"""300 flipped bits in each of a run's files: none is read in silence, and training goes on."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import onnx
import pytest
import torch
from PIL import Image

from qtool import pipeline
from qtool.inspection.onnx import read_onnx
from tests.kit import metrics, shell, write_recipe

QUICK = {"training.epochs": 3, "data.train_samples": 64}
FLIPS = 300
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    pipeline.train(write_recipe(folder, QUICK), run_dir=folder / "run", device="cpu")
    pipeline.export(folder / "run")
    Image.new("L", (16, 16), 100).save(folder / "run" / "picture.png")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copytree(trained, tmp_path / "run")


def flipped(path: Path, seed: int) -> Iterator[int]:
    """Yield the number of each flip, while the file has it; it is mended in the end."""
    whole, chosen = bytearray(path.read_bytes()), random.Random(seed)
    for number in range(FLIPS):
        place, bit = chosen.randrange(len(whole)), 1 << chosen.randrange(8)
        whole[place] ^= bit
        path.write_bytes(whole)
        yield number
        whole[place] ^= bit
    path.write_bytes(whole)


def refused(*argv: str) -> bool:
    code, _, err = shell(*argv)
    assert "Traceback" not in err
    return code == 2


def test_of_a_checkpoint(run: Path, tmp_path: Path) -> None:
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in metrics(run)]
    weights = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    commands: list[list[str]] = [["convert"], ["inspect"], ["compare", "runs"], ["export"]]
    for number in flipped(run / "checkpoint.pt", 0):
        assert refused(*commands[number % len(commands)], str(run)), number
        if number % 30 == 0:
            again = copytree(run, tmp_path / f"again{number}")
            argv = ["train", str(again / "recipe.yaml"), "--run-dir", str(again), "--resume"]
            code, _, err = shell(*argv, "--device", "cpu")
            assert code in (0, None), err
            assert "checkpoint.pt: damaged; going on from checkpoint.previous.pt" in err
            found = [{k: v for k, v in line.items() if k != "seconds"} for line in metrics(again)]
            assert found == lines
            made = torch.load(again / "checkpoint.pt", weights_only=True)["model"]
            assert all(torch.equal(made[name], value) for name, value in weights.items())


def test_of_an_integer_model(run: Path) -> None:
    integer = run / "integer.safetensors"
    blanks = 0
    for number in flipped(integer, 1):
        command = "inspect" if number % 2 else "export"
        output = ["--output", str(run / "x.onnx")] if command == "export" else []
        if not refused(command, str(integer), *output):
            blanks += 1  # that fill up the header, and say nothing
    assert blanks == 0


def without_texts(path: Path) -> bytes:
    """Return what a file says that a value is read from, or an output computed."""
    model = read_onnx(path)
    graph = model.graph
    model.doc_string = graph.name = graph.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    kept = [e for e in model.metadata_props if e.key.startswith(("qtool.layer", "qtool.pre"))]
    kept += [e for e in model.metadata_props if e.key in ("qtool", "qtool.classes")]
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.StringStringEntryProto(key=e.key, value=e.value) for e in kept)
    return model.SerializeToString(deterministic=True)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "predict": lambda path: ["predict", str(path), str(path.with_name("picture.png"))],
    "bench": lambda path: ["bench", str(path), "--rounds", "2"],
    "compare runs": lambda path: ["compare", "runs", str(path)],
    "inspect": lambda path: ["inspect", str(path)],
}


def test_of_an_onnx_file(run: Path) -> None:
    path = run / "model.onnx"
    expected, of_no_value = without_texts(path), 0
    kinds = list(COMMANDS.values())
    for number in flipped(path, 2):
        if not refused(*kinds[number % len(kinds)](path)):
            assert without_texts(path) == expected, number
            of_no_value += 1
    assert of_no_value < FLIPS / 5

"""What a shell offers where TAB is pressed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qtool.cli.completion import assignment, listed, of_data, one_of, shipped_names
from qtool.numerics.estimators import ESTIMATORS
from qtool.recipe.early import sections
from tests.cli.test_app import HEAVY
from tests.self_description import names_of, recipe_keys

SHELL = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.argv = ["qtool"]
from qtool.cli import main
main()
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("qtool list mo", ["models"]),
        ("qtool train r.yaml --set training.optimizer=adamw", ["training.optimizer=adamw"]),
    ],
)
def test_a_shell_is_offered_words_without_torch(typed: str, offered: list[str]) -> None:
    place = {"PYTHONPATH": str(Path(__file__).parents[2])}
    asked = {"_QTOOL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": typed}
    ended = subprocess.run(
        [sys.executable, "-c", SHELL],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | place | asked | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    )
    assert [line.split("\t")[0] for line in ended.stdout.split("\n") if line] == offered
    loaded = ended.stderr.splitlines()[-1].split()
    assert HEAVY.intersection(loaded) <= {"yaml"}  # a recipe's keys are known to what reads it


def test_a_list_is_completed_name_by_name() -> None:
    complete = listed("estimators")
    assert complete("") == names_of(ESTIMATORS)
    assert complete("relu,ident") == ["relu,identity"]
    assert "relu,relu" not in complete("relu,")
    assert complete("relu,no_such") == []
    assert one_of(["cpu", "cuda"])("cu") == ["cuda"]


def test_every_key_of_a_recipe_is_offered_and_then_its_words() -> None:
    known = [key for key, _ in recipe_keys() if "[]" not in key]
    offered = {word.rstrip("=") for word in assignment("")}
    lists = {"quantization.overrides"}
    assert set(known) | lists == offered
    assert assignment("quantization.weights.granularity=") == [
        "quantization.weights.granularity=per_tensor",
        "quantization.weights.granularity=per_channel",
    ]
    assert assignment("training.compile=t") == ["training.compile=true"]
    assert "model.name=resnet18" in assignment("model.name=")
    assert assignment("model.nothing=") == []
    assert all(word.startswith("data.") for word in of_data("d"))
    assert of_data("training.") == []
    assert sections()["properties"].keys() >= {"model", "data"}


def test_recipes_that_ship_are_offered() -> None:
    assert shipped_names("digits") == ["digits", "digits_blend", "digits_distilled"]

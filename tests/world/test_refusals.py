"""What several processes cannot do together is refused, with exit code 2, before any training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from qtool import pipeline
from qtool.cli.app import app
from qtool.errors import InputError
from qtool.runs.built.build import load_checked
from qtool.runs.built.deal import deal, refuse_differing
from qtool.world.world import World
from tests.kit import shell, write_recipe

OTHERS = sorted(set(vars(typer.main.get_command(app))["commands"]) - {"train"})


class Several(World):
    """One of several processes, that asks none of the others."""

    def __init__(self, size: int, words: list[str] | None = None) -> None:
        self.size, self.words = size, words

    def told(self, word: str) -> list[str]:
        return self.words or [word] * self.size


def started(patch: pytest.MonkeyPatch, rank: object, size: object, local: object = None) -> None:
    """Let the environment be what torchrun makes it."""
    here = local if local is not None else rank
    said = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": here, "LOCAL_WORLD_SIZE": size}
    for key, value in said.items():
        patch.setenv(key, str(value))


@pytest.mark.parametrize("command", OTHERS)
def test_commands_that_are_no_training_refuse_torchrun(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, 1, 2)

    code, out, err = shell(command)

    assert (code, out) == (2, "")
    assert f"qtool {command} works in one process, and torchrun started 2" in err


@pytest.mark.parametrize(
    ("rank", "size", "local", "named"),
    [
        ("one", 2, 0, "RANK=one, WORLD_SIZE=2"),
        (-1, 2, 0, "RANK=-1"),
        ("", 2, 0, "RANK=, WORLD_SIZE=2"),
        ("\u0661", 2, 0, "RANK=\u0661"),  # a digit, but no ASCII one
        (2, 2, 0, "process 2 of 2"),
        (0, 2, 2, "2 of 2 here"),
        (0, 0, 0, "process 0 of 0"),
    ],
)
@pytest.mark.parametrize("command", ["train", "convert"])
def test_an_environment_that_is_not_torchruns_is_refused(
    command: str,
    rank: object,
    size: object,
    local: object,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started(monkeypatch, rank, size, local)

    code, out, err = shell(command, "r.yaml")

    assert (code, out) == (2, "")
    assert "the environment is not torchrun's" in err
    assert named in err


def test_one_process_that_torchrun_starts_works_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started(monkeypatch, 0, 1)

    code, _, err = shell("inspect", "not_there")

    assert code == 2
    assert "torchrun" not in err


@pytest.mark.parametrize(
    ("size", "changes", "parts"),
    [
        (3, {}, "3 processes; choose a multiple of 3"),
        (
            8,
            {"training.gradient_accumulation": 8},
            "8 processes times training.gradient_accumulation: 8; choose a multiple of 64",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(
    size: int,
    changes: dict[str, object],
    parts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def formed(device: str) -> Iterator[World]:
        yield Several(size)

    monkeypatch.setattr(pipeline, "formed", formed)
    path, run = write_recipe(tmp_path, changes), tmp_path / "run"

    code, out, err = shell("train", str(path), "--run-dir", str(run), "--device", "cpu")

    assert (code, out) == (2, "")
    assert f"data.batch_size: 32, of all processes together, is not divisible by {parts}" in err
    assert not run.exists()


def test_a_batch_that_shares_do_not_divide_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"training.gradient_accumulation": 5})

    code, out, err = shell("train", str(path), "--run-dir", str(tmp_path / "run"))

    assert (code, out) == (2, "")
    assert "32 is not divisible by training.gradient_accumulation" in err


class Samples:
    """Batches of so many images, that nobody reads."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def part(self, rank: int, size: int) -> "Samples":
        return self


@dataclass
class Split:
    """Batches for training and validation."""

    train: Samples
    validation: Samples
    holdout: None = None


def test_steps_that_are_captured_are_refused_in_several_processes(tmp_path: Path) -> None:
    recipe = load_checked(write_recipe(tmp_path, {"training.cuda_graph": True}))
    data: Any = Split(Samples(64), Samples(64))

    with pytest.raises(
        InputError, match=r"training\.cuda_graph: captures the steps of one"
    ) as said:
        deal(recipe, data, torch.device("cuda"), Several(2))

    assert said.value.exit_code == 2
    assert deal(recipe, data, torch.device("cuda"), World()).rows == 0
    assert deal(recipe, data, torch.device("cpu"), Several(2)).rows == 32


def test_fewer_images_than_processes_are_refused(tmp_path: Path) -> None:
    recipe = load_checked(write_recipe(tmp_path))
    data: Any = Split(Samples(3), Samples(3))

    with pytest.raises(InputError, match="3 training images are too few for 4 shares") as said:
        deal(recipe, data, torch.device("cpu"), Several(4))

    assert said.value.exit_code == 2


def test_processes_with_other_recipes_are_refused(tmp_path: Path) -> None:
    recipe = load_checked(write_recipe(tmp_path))

    with pytest.raises(InputError, match="process 1, 2 has another recipe than process 0"):
        refuse_differing(recipe, Several(3, ["a", "b", "c"]))
    refuse_differing(recipe, Several(3))

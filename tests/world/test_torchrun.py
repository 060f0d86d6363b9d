"""Trainings that torchrun starts: what is killed, stopped or fails there, and how that ends."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool import pipeline
from qtool.runs.built.build import load_checked, make_data
from tests.kit import metrics as lines
from tests.kit import write_recipe
from tests.runs.left import wait_until
from tests.runs.test_killed import FOLDERS, photographs
from tests.runs.test_resume import LEARNED, checkpoint, differences, metrics
from tests.world.torchrun import Training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc"),
]
GOING: dict[str, Any] = LEARNED | {"data.train_samples": 1200, "data.batch_size": 32}


@pytest.fixture
def started() -> Iterator[list[Training]]:
    """Give a list of trainings, which are ended after the test whatever happened."""
    made: list[Training] = []
    yield made
    for training in made:
        training.kill()


def trained(started: list[Training], *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Train by torchrun to the end; return its exit code and what was said."""
    started.append(Training(*args, **kwargs))
    return started[-1].end()


def inside_an_epoch(training: Training, run: Path) -> None:
    """Wait until a training has done an epoch, and takes steps of the next."""
    there = run / "metrics.jsonl"
    wait_until(lambda: there.is_file() and there.read_text().count("\n") >= 1, 120)
    assert training.process.poll() is None, training.log.read_text()


def assert_same_run(one: Path, two: Path) -> None:
    assert differences(checkpoint(one), checkpoint(two)) == []
    assert metrics(one) == metrics(two)


def test_a_training_goes_on_after_a_process_was_killed_and_after_torchrun_was_stopped(
    tmp_path: Path, started: list[Training]
) -> None:
    path, whole = write_recipe(tmp_path, GOING), tmp_path / "whole"
    assert trained(started, path, whole)[0] == 0

    killed = tmp_path / "killed"
    started.append(training := Training(path, killed, restarts=2))
    inside_an_epoch(training, killed)
    os.kill(training.rank(1), signal.SIGKILL)
    code, said = training.end()
    assert code == 0, said
    assert "going on after epoch" in said
    assert_same_run(whole, killed)

    stopped = tmp_path / "stopped"
    started.append(training := Training(path, stopped))
    inside_an_epoch(training, stopped)
    ranks = {training.rank(0), training.rank(1)}
    os.kill(training.process.pid, signal.SIGTERM)
    code, said = training.end()
    assert code != 0
    assert said.count("go on with: qtool train") == 1
    assert not ranks & training.processes()
    assert len(metrics(stopped)) < 4
    code, said = trained(started, path, stopped, "--resume")
    assert code == 0, said
    assert_same_run(whole, stopped)


FAULTS = {
    "a_label_that_is_no_class": "labels run from 100 to 100; needed are 0..9, the 10 classes",
    "an_image_of_nans": "the images themselves hold values that are not finite",
    "a_photograph_that_is_damaged": "photographs/7.jpg: damaged",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_in_one_process_ends_all_with_one_message(
    fault: str, tmp_path: Path, started: list[Training]
) -> None:
    path, run = write_recipe(tmp_path, GOING), tmp_path / "run"
    code, said = trained(started, path, run, fault=fault)

    assert code == 1
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert FAULTS[fault] in errors[0]
    assert not re.search(r'File ".*/qtool/', said)  # no traceback but torchrun's own
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert FAULTS[fault] in summary["error"]


def test_an_error_that_is_no_message_in_one_process_ends_all(
    tmp_path: Path, started: list[Training]
) -> None:
    path, run = write_recipe(tmp_path, GOING), tmp_path / "run"
    code, said = trained(started, path, run, fault="a_mistake_of_qtools")

    assert code == 1
    assert "LookupError: planted" in said  # with its traceback, as it is ours
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"


def test_folders_of_photographs_are_read_by_workers_of_each_process(
    tmp_path: Path, started: list[Training]
) -> None:
    root = photographs(tmp_path / "photographs", 96)
    # without codes of activations, whose flips would make other trainings of the two
    changes = {
        "data.root": str(root),
        "quantization": {"weights": {"bits": 8}},
        "training.epochs": 2,
        "training.sync_batch_norm": True,
    }
    path = write_recipe(tmp_path, FOLDERS | changes)
    one, two = tmp_path / "one", tmp_path / "two"
    pipeline.train(path, run_dir=one, device="cpu")
    code, said = trained(started, path, two, "--profile")

    assert code == 0, said
    by_one, by_two = lines(one), lines(two)
    for alone, together in zip(by_one, by_two, strict=True):
        assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)
        assert together["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-2)
    assert checkpoint(one)["model"].keys() == checkpoint(two)["model"].keys()
    profile = json.loads((two / "summary.json").read_text())["profile"]
    assert profile["steps"] > 0


def test_workers_of_two_processes_read_the_rows_of_one(tmp_path: Path) -> None:
    """The pixels themselves, augmented, in both epochs."""
    root = photographs(tmp_path / "photographs", 96)
    recipe = load_checked(write_recipe(tmp_path, FOLDERS | {"data.root": str(root)}))
    train = make_data(recipe, torch.device("cpu")).train
    parts = [train.part(rank, 2) for rank in range(2)]
    for epoch in range(2):
        whole = list(train.batches(epoch))
        assert len(whole) == 4
        for rank, part in enumerate(parts):
            for (images, labels), (some, their) in zip(whole, part.batches(epoch), strict=True):
                assert torch.equal(some, images[rank::2])
                assert torch.equal(their, labels[rank::2])


def test_images_held_out_are_judged_by_all_processes(
    tmp_path: Path, started: list[Training]
) -> None:
    path = write_recipe(tmp_path, GOING | {"data.holdout": 0.25, "data.train_samples": 200})
    one, two = tmp_path / "one", tmp_path / "two"
    pipeline.train(path, run_dir=one, device="cpu")
    code, said = trained(started, path, two)

    assert code == 0, said
    first = [lines(run)[0] for run in (one, two)]
    assert first[1]["holdout_loss"] == pytest.approx(first[0]["holdout_loss"], rel=1e-2)
    for run in (one, two):
        assert [line["validation_loss"] is None for line in lines(run)] == [True] * 3 + [False]

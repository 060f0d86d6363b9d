"""Trainings that are killed: nothing of them stays, and they go on to the same end."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qtool import pipeline
from tests.kit import write_recipe
from tests.runs.left import (
    PATIENCE,
    end,
    memory_of,
    of_session,
    semaphores_of,
    start_alone,
    wait_until,
)
from tests.runs.test_resume import LEARNED, checkpoint, differences, metrics

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")

IN_WORK = r"\..+\.\w{8}\.tmp"  # a folder in which a file is written
FOLDERS: dict[str, Any] = {
    "model.name": "resnet20",
    "data.name": "image_folder",
    "data.image_size": 32,
    "data.batch_size": 16,
    "data.workers": 2,
    "seed": 5,
    "training.epochs": 4,
}


def photographs(root: Path, images: int) -> Path:
    """Make a folder of photographs of noise, in three classes and two halves."""
    generator = np.random.default_rng(0)
    for half, count in (("train", images), ("val", images // 4)):
        for name in ("cat", "dog", "emu"):
            folder = root / half / name
            folder.mkdir(parents=True)
            for number in range(count // 3):
                pixels = generator.integers(0, 255, (48, 56, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


def with_folders(place: Path, images: int = 240) -> Path:
    """Return a recipe for a ResNet on folders of photographs, read by two workers."""
    root = photographs(place / "photographs", images)
    return write_recipe(place, FOLDERS | {"data.root": str(root)})


def starts(path: Path, run: Path) -> "subprocess.Popen[bytes]":
    argv = ["train", str(path), "--run-dir", str(run), "--device", "cpu"]
    argv += ["--resume"] if run.exists() else []
    return start_alone(*argv, log=run.with_suffix(".log"))


def temporary_files(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob(".*")]


@pytest.mark.slow
def test_a_killed_training_with_workers_leaves_nothing_behind(tmp_path: Path) -> None:
    path, run = with_folders(tmp_path, 96), tmp_path / "run"
    process = starts(path, run)
    try:
        wait_until(lambda: (run / "metrics.jsonl").is_file(), 60)
        there = of_session(process.pid)
        semaphores, memory = semaphores_of(there), memory_of(there)
        assert len(there) >= 5, run.with_suffix(".log").read_text()  # forkserver, tracker, workers
        assert semaphores
        process.kill()
        process.wait()
        took = wait_until(lambda: not of_session(process.pid))
        assert of_session(process.pid) == set(), f"{memory:,} bytes"
        wait_until(lambda: not any(s.exists() for s in semaphores), PATIENCE - took)
        assert [s for s in semaphores if s.exists()] == []
    finally:
        end(process)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lenet5", "resnet with folders and workers"])
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(kind: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, LEARNED) if kind == "lenet5" else with_folders(tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    pipeline.train(path, run_dir=whole, device="cpu")
    chosen = random.Random(17)
    in_writes = 0
    for kill in range(20):
        in_writes += killed_once(starts(path, run), run, chosen, in_a_write=kill % 2 == 0)
    assert in_writes >= 8
    pipeline.train(path, run_dir=run, device="cpu", resume=True)
    assert differences(checkpoint(whole), checkpoint(run)) == []
    assert metrics(whole) == metrics(run)
    assert temporary_files(run) == []
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in whole.iterdir())


def killed_once(
    process: "subprocess.Popen[bytes]", run: Path, chosen: random.Random, *, in_a_write: bool
) -> bool:
    """Kill a training, and see everything of it go; tell whether that was inside a write."""
    try:
        hit = in_a_write and killed_in_a_write(process, run, chosen)
        if not in_a_write:
            wait_until(lambda: process.poll() is not None, chosen.uniform(2, 9))
            process.kill()
        process.wait()
        semaphores = semaphores_of(of_session(process.pid))
        assert wait_until(lambda: not of_session(process.pid)) < PATIENCE
        assert [s for s in semaphores if s.exists()] == []
        return hit
    finally:
        end(process)


def killed_in_a_write(process: "subprocess.Popen[bytes]", run: Path, chosen: random.Random) -> bool:
    """Kill a training as soon as a file is being written, some files later; tell if that was so."""
    files_before = chosen.randrange(6)
    seen: set[str] = set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if run.is_dir():
            seen |= {p.name for p in run.glob(".*.tmp") if re.fullmatch(IN_WORK, p.name)}
        if len(seen) > files_before:
            os.kill(process.pid, signal.SIGKILL)
            return True
    process.kill()
    return False

"""Real trainings, several at once: the same results, whatever is killed, stopped or damaged."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs.left import PATIENCE, end, of_session, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
]

RECIPE = """
seed: 3
model: {name: lenet5}
data: {name: digits, batch_size: 64, image_size: 28, train_samples: 640}
quantization:
  weights: {bits: 2, range: {name: he_uniform}, estimator: straight_through}
training: {epochs: 4, optimizer: {name: sgd, momentum: 0.9}, learning_rate: 0.02}
"""
BLEND = RECIPE.replace("estimator: straight_through", "blend: {name: linear, start: 0, stop: 1}")
KILLS = """
import os, signal
from pathlib import Path

def kills(grad, u, low, high):
    if "execution.worker" in Path("/proc/self/cmdline").read_text() and u.numel() > 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return grad

def kills_once(grad, u, low, high):
    in_worker = "compare" not in Path("/proc/self/cmdline").read_text()
    if in_worker and u.numel() > 100 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return grad
"""
ESTIMATORS = ["estimators", "r.yaml", "--estimators", "straight_through,identity,sinusoidal"]
SCHEDULES = ["schedules", "blend.yaml", "--schedules", "linear,cubic"]
EQUIVALENCE = ["equivalence", "r.yaml", "--estimator", "sinusoidal", "--learning-rates", "0.02"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "blend.yaml").write_text(BLEND.replace("he_uniform", "absmax"))
    (tmp_path / "mine.py").write_text(KILLS)
    return tmp_path


def started(place: Path, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "qtool", "compare", *arguments, "--device", "cpu"],
            cwd=place,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def compared(place: Path, *arguments: str, code: int = 0) -> dict[str, object]:
    """Run a comparison to its end, and return what it wrote into the folder of its --output."""
    process = started(place, arguments)
    try:
        assert process.wait(timeout=280) == code, (place / "log").read_text()
    finally:
        end(process)
    output = arguments[arguments.index("--output") + 1]
    return json.loads((place / output / "comparison.json").read_text())


def weights(folder: Path) -> dict[str, list[object]]:
    """Return all trained weights of a comparison's trials, by their folders."""
    return {
        str(path.parent.relative_to(folder)): [
            (name, value.tolist()) for name, value in sorted(load_file(path).items())
        ]
        for path in sorted(folder.rglob("model.safetensors"))
    }


def trains_since(log: Path, length: int) -> bool:
    """Tell whether a trial has begun since a log was so long."""
    return ": training " in log.read_text()[length:]


@pytest.mark.parametrize("command", [ESTIMATORS, SCHEDULES, EQUIVALENCE])
def test_several_at_once_give_what_one_after_the_other_does(
    command: list[str], place: Path
) -> None:
    """To the last bit."""
    several = compared(place, *command, "--seeds", "2", "--jobs", "2", "--output", "several")
    alone = compared(place, *command, "--seeds", "2", "--threads", "1", "--output", "alone")

    assert several == alone
    assert several["threads"] == 1
    assert weights(place / "several") == weights(place / "alone")
    assert weights(place / "alone")


def test_whatever_is_killed_and_started_again_gives_the_same(place: Path) -> None:
    """At ten random points, while one trial diverges, one is killed, and one folder is damaged."""
    command = ["estimators", "r.yaml", "--seeds", "2", "--jobs", "2", "--output", "c"]
    arms = [
        "plain: quantization.weights.estimator=straight_through",
        "other: quantization.weights.estimator=identity",
        "hot: training.learning_rate=1e30",
        "killed: quantization.weights.estimator=mine.py:kills",
    ]
    sound = [word for arm in arms[:2] for word in ("--arm", arm)]
    command += [word for arm in arms for word in ("--arm", arm)]
    ready, disturbed = place / "ready", place / "disturbed"
    ready.mkdir()
    for name in ("r.yaml", "mine.py"):
        shutil.copy(place / name, ready)
    one = ["estimators", "r.yaml", "--seeds", "1", "--threads", "1", "--output", "c"]
    made = compared(ready, *one, *sound)
    assert made["failed_trials"] == []
    (ready / "c" / "comparison.json").unlink()
    for path in (ready / "c" / "other" / "seed-3").glob("checkpoint*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    shutil.copytree(ready, disturbed)
    wanted = compared(ready, *command, code=1)

    chosen, points = random.Random(18), 0
    for number in [signal.SIGKILL, signal.SIGTERM, signal.SIGINT] * 4:
        if points == 10:
            break
        process = started(disturbed, command)
        try:
            if points % 2:  # in a training, where there is one left
                known = len((disturbed / "log").read_text())
                wait_until(lambda at=known: trains_since(disturbed / "log", at), 15)
                time.sleep(chosen.uniform(0, 1))
            else:
                time.sleep(chosen.uniform(2, 12))
            points += process.poll() is None
            process.send_signal(number)
            process.wait(timeout=60)
            wait_until(lambda process=process: not of_session(process.pid), PATIENCE)
            assert of_session(process.pid) == set()
        finally:
            end(process)
    found = compared(disturbed, *command, code=1)

    assert found == wanted
    failed = found["failed_trials"]
    assert [each["arm"] for each in failed] == ["other", "hot", "hot", "killed", "killed"]
    assert "checkpoint.pt: damaged" in failed[0]["error"]
    assert "SIGKILL" in failed[3]["error"]
    said = (disturbed / "log").read_text()
    assert "WARNING: other, seed 3 failed: " in said
    assert "Traceback" not in said


def test_a_cluster_gives_what_processes_do_also_where_a_worker_is_killed(place: Path) -> None:
    pytest.importorskip("ray")
    arms = ["estimators", "r.yaml", "--estimators", "straight_through,mine.py:kills_once"]
    by_ray = compared(place, *arms, "--seeds", "2", "--jobs", "2", "--output", "ray", "--cluster")
    assert (place / "killed").exists()
    by_jobs = compared(place, *arms, "--seeds", "2", "--jobs", "2", "--output", "jobs")

    assert by_ray == by_jobs
    assert by_ray["failed_trials"] == []
    assert weights(place / "ray") == weights(place / "jobs")
    assert "it is tried once more" in (place / "log").read_text()

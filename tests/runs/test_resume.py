"""Runs that are killed, interrupted, finished already, or going nowhere."""

import json
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool import pipeline
from qtool.errors import TrainingError
from qtool.reports.spreadsheets import metrics_csv
from qtool.runs.built import build
from qtool.runs.kept.folder import RunFolder
from tests import kit
from tests.kit import shell, write_recipe
from tests.runs.forked import Forked

# 32 steps make an epoch long enough to be killed in the middle of it.
LEARNED: dict[str, Any] = {
    "seed": 3,
    "data.batch_size": 8,
    "data.train_samples": 768,
    "quantization": {
        "weights": {"bits": 4, "range": "learned"},
        "activations": {"bits": 4, "place": "layer_inputs", "range": "learned"},
        "overrides": [{"match": "conv1", "activations": None}],
    },
    "training": {
        "epochs": 4,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
        "learning_rate": {"name": "cosine", "start": 0.02, "stop": 0.0, "warmup": 0.1},
        "calibration_batches": 2,
    },
}
# Weights freeze after 1.6 of 4 epochs; every second epoch has a checkpoint only.
BLENDED = LEARNED | {
    "quantization": {
        "weights": {
            "bits": 3,
            "range": "absmax",
            "blend": {"name": "cubic", "start": 0.0, "stop": 1.0, "window": [0.0, 0.4]},
        },
        "activations": {
            "bits": 4,
            "place": "layer_inputs",
            "grid": "asymmetric",
            "range": "ema_min_max",
        },
        "overrides": [
            {"match": "fc3", "weights": {"blend": None, "range": "learned"}},
            {"match": "conv2", "weights": {"range": "ppq"}},
        ],
    },
    "training": {
        "epochs": 4,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "calibration_batches": 2,
    },
}
# Random rounding draws at every step; weights are pulled onto their levels, and freeze there.
RESTLESS = LEARNED | {
    "quantization": {
        "weights": {
            "bits": 2,
            "rounding": "stochastic_rounding",
            "estimator": {
                "name": "hyperbolic_tangent",
                "sharpness": {"name": "linear", "start": 1.0, "stop": 2.0},
            },
            "dampening": {"name": "linear", "start": 0.0, "stop": 0.01},
            "freezing": {
                "threshold": {"name": "cosine", "start": 0.04, "stop": 0.005},
                "momentum": 0.05,
            },
        },
        "activations": {"bits": 4, "place": "layer_inputs", "grid": "asymmetric"},
        "overrides": [
            {"match": "fc3", "weights": {"rounding": "additive_noise", "estimator": None}}
        ],
    }
}
AT_SITES = LEARNED | {
    "quantization": {
        "weights": {"bits": 4, "range": "learned"},
        "activations": {"bits": 4, "place": "every_value", "range": "ema_min_max"},
    }
}
WITH_KEYS = BLENDED | {
    "data.holdout": 0.1,
    "training": BLENDED["training"]
    | {
        "optimizer": "NAdam",
        "clip_gradient": 0.5,
        "ema": 0.9,
        "freeze": ["conv2"],
        "class_weights": "balanced",
        "validation_top5": True,
    },
}
QUICK = LEARNED | {"training.epochs": 2}


def write(folder: Path, changes: dict[str, Any], **training: Any) -> Path:
    return write_recipe(folder, changes | {f"training.{k}": v for k, v in training.items()})


def start(recipe: Path, folder: Path) -> Forked:
    argv = ["train", str(recipe), "--run-dir", str(folder), "--device", "cpu"]
    argv += ["--resume"] if folder.exists() else []
    return Forked(*argv)


def end_in_the_middle(
    process: Forked, after_epoch: int, wait: float, number: signal.Signals
) -> tuple[int, str, str]:
    """Send a signal `wait` seconds after an epoch ended; return exit code, stdout and stderr."""
    said = []
    for line in process.stderr:
        said.append(line)
        if re.match(rf"epoch +{after_epoch}/", line):
            break
    time.sleep(wait)
    process.send_signal(number)
    code, out, err = process.ended()
    return code, out, "".join(said) + err


def differences(one: Any, two: Any, place: str = "") -> list[str]:
    """Return where two nested structures of tensors are not equal to the last bit."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return [f"{place}: {one.keys() ^ two.keys()}"]
        return [d for key in one for d in differences(one[key], two[key], f"{place}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            return [f"{place}: {len(one)} and {len(two)}"]
        return [d for k in range(len(one)) for d in differences(one[k], two[k], f"{place}.{k}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and torch.equal(one, two)
        return [] if same else [place]
    return [] if one == two and type(one) is type(two) else [f"{place}: {one} and {two}"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics, without the time that they took."""
    lines = kit.metrics(folder)
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def checkpoint(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    for line in state["history"]:
        del line["seconds"]
    return state


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(BLENDED, marks=pytest.mark.slow),
        RESTLESS,
        pytest.param(LEARNED, marks=pytest.mark.slow),
        pytest.param(AT_SITES, marks=pytest.mark.slow),
        pytest.param(WITH_KEYS, marks=pytest.mark.slow),
    ],
    ids=[
        "blend that freezes",
        "random rounding, dampening, freezing",
        "learned scales",
        "sites",
        "keys of training",
    ],
)
def test_a_run_killed_twice_ends_as_if_it_had_never_stopped(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, changes)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for after_epoch, wait in ((1, 0.02), (3, 0.08)):
        process = start(path, killed)
        code, out, err = end_in_the_middle(process, after_epoch, wait, signal.SIGKILL)
        assert (code, out) == (-signal.SIGKILL, ""), err
        assert after_epoch <= len(metrics(killed)) < 4
        assert json.loads((killed / "summary.json").read_text())["status"] == "running"
    resumed = pipeline.train(path, run_dir=killed, device="cpu", resume=True).to_json()
    straight = pipeline.train(path, run_dir=whole, device="cpu").to_json()
    assert differences(checkpoint(whole), checkpoint(killed)) == []
    assert metrics(whole) == metrics(killed)
    assert (killed / "metrics.csv").read_text() == metrics_csv(RunFolder(killed).history())
    alphas = [line["alpha"] for line in metrics(whole) if "alpha" in line]
    assert alphas in ([], [pytest.approx(1 - (1 - 0.25 / 0.4) ** 3), 1, 1, 1])
    assert bool(alphas) == (changes in (BLENDED, WITH_KEYS))
    shares = [line["frozen_share"] for line in metrics(whole) if "frozen_share" in line]
    assert [max(share.values()) > 0 for share in shares[-1:]] == [True] * (changes is RESTLESS)
    apart = ("run", "seconds")
    assert [resumed.pop(key) != straight.pop(key) for key in apart] == [True, True]
    assert resumed == straight
    assert {p.name for p in whole.iterdir()} == {p.name for p in killed.iterdir()}


def test_ctrl_c_keeps_a_good_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    path, folder = write(tmp_path, LEARNED), tmp_path / "run"
    code, out, err = end_in_the_middle(start(path, folder), 2, 0.05, signal.SIGINT)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert "--resume" in err.splitlines()[-2]
    assert str(folder) in err.splitlines()[-2]
    assert err.splitlines()[-1] == "interrupted"
    state = checkpoint(folder)
    assert len(state["history"]) == 2
    assert state["history"] == metrics(folder)
    assert json.loads((folder / "summary.json").read_text())["status"] == "running"


def test_resume_on_a_finished_run_prints_its_summary_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = write(tmp_path, QUICK), tmp_path / "run"
    argv = ["train", str(path), "--run-dir", str(folder), "--json"]
    argv += ["--set", "seed=4", "--device", "cpu"]
    assert shell(*argv)[0] == 0
    argv.append("--resume")
    before = contents(folder)

    def too_far(*_: Any) -> None:
        raise AssertionError("a finished run needs no data")

    monkeypatch.setattr(build, "make_data", too_far)
    code, out, err = shell(*argv)
    assert code == 0
    assert json.loads(out) == json.loads(before["summary.json"])
    assert "finished already" in err
    assert contents(folder) == before


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    path = write(tmp_path, QUICK)
    (tmp_path / "empty").mkdir()
    pipeline.train(path, run_dir=tmp_path / "whole", device="cpu")
    pipeline.train(path, run_dir=tmp_path / "empty", device="cpu", resume=True)
    assert differences(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "empty")) == []
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        (stopped / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    pipeline.train(path, run_dir=stopped, device="cpu", resume=True)
    assert differences(checkpoint(tmp_path / "whole"), checkpoint(stopped)) == []


def test_resume_on_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    path, folder = write(tmp_path, QUICK), tmp_path / "nowhere"
    code, out, err = shell("train", str(path), "--run-dir", str(folder), "--resume")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"error: {folder}: no such folder; leave out --resume to begin the run there"
    )
    assert not folder.exists()


def test_what_a_kill_leaves_half_written_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".recipe.yaml.123.tmp").write_text("model: {na")
    pipeline.train(write(tmp_path, QUICK, epochs=1), run_dir=folder, device="cpu", resume=True)
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def test_resume_needs_the_same_recipe(tmp_path: Path) -> None:
    path, folder = write(tmp_path, QUICK, epochs=1), tmp_path / "run"
    argv = ["train", str(path), "--run-dir", str(folder), "--device", "cpu"]
    assert shell(*argv, "--set", "training.epochs=2")[0] == 0
    before = contents(folder)
    for change, told in (
        ("training.epochs=1", "training.epochs: 2 there, 1 here"),
        ("seed=9", "seed: 3 there, 9 here"),
    ):
        code, out, err = shell(*argv, "--resume", "--set", "training.epochs=3", "--set", change)
        assert (code, out) == (2, "")
        assert told in err
        assert contents(folder) == before


def test_a_finished_run_goes_on_for_more_epochs_as_another_run(tmp_path: Path) -> None:
    path, folder = write(tmp_path, QUICK, epochs=1), tmp_path / "run"
    argv = ["train", str(path), "--run-dir", str(folder), "--device", "cpu"]
    assert shell(*argv)[0] == 0
    longer = ["--set", "training.epochs=3", "--resume"]
    code, _, err = shell(*argv, *longer)
    assert code == 0
    assert "was finished after 1 epochs; it goes on to 3 with the schedules of 3" in err
    assert len(metrics(folder)) == 3
    progress = (2 * 96 - 1) / (3 * 96)  # at the last step of epoch 2, long after the warm-up
    rate = 0.01 * (1 + math.cos(math.pi * progress))
    assert metrics(folder)[1]["learning_rate"] == pytest.approx(rate)
    assert "finished already" in shell(*argv, *longer)[2]
    code, _, err = shell(*argv, "--resume")
    assert code == 2
    assert "training.epochs: 3 there, 1 here" in err


# torch warns of float(loss) in training/loop.py; see Trainer._train_epoch.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_a_run_that_diverges_fails_and_names_the_first_bad_layer(tmp_path: Path) -> None:
    path, folder = write(tmp_path, QUICK, learning_rate=1e30), tmp_path / "run"
    code, out, err = shell("train", str(path), "--run-dir", str(folder), "--device", "cpu")
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: the loss became nan in epoch 1, step ")
    assert re.search(r"the first layer that went bad is (conv|fc)\d", last)
    assert "Lower training.learning_rate" in last
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert last.endswith(summary["error"])


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_a_run_whose_last_step_diverges_fails_too(tmp_path: Path) -> None:
    one_step = {"data.batch_size": 256}
    path = write(tmp_path, QUICK | one_step, epochs=1, learning_rate=1e30)
    with pytest.raises(TrainingError, match="the loss became nan"):
        pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    text = (tmp_path / "run" / "summary.json").read_text()
    assert "NaN" not in text

"""A network, a loss and an optimizer of the user's own, from the recipe to the ONNX file."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool import pipeline
from qtool.models.papers import MODELS
from qtool.settings import user_modules, user_parts
from qtool.training import user_training
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS
from tests.kit import refused, shell, write_recipe

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, width: int = 1, in_channels=3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8 * width, 3, padding=1)
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def sequential(num_classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))


def entropy(logits, labels, *, weight: float = 1.0):
    return weight * nn.functional.cross_entropy(logits, labels)


class Entropy(nn.Module):
    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, logits, labels):
        return entropy(logits, labels, weight=self.weight)


class Fused(torch.optim.SGD):
    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, lr, weight_decay=weight_decay, fused=True)


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * (p.grad + group["weight_decay"] * p))


def rowwise(logits, labels):
    return logits.sum(1)


def failing(logits, labels):
    raise KeyError("mask")


class Wide(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes + 3)


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class Fixed(Net):
    def __init__(self):
        super().__init__(10)
        self.fc = nn.Linear(9, 10)


class Late(Net):
    def __init__(self, num_classes, depth):
        super().__init__(num_classes)
        raise ValueError(f"no depth of {depth}")


def not_a_network(num_classes):
    return 3


class Trained(Net):
    def forward(self, x):
        if self.training and x.requires_grad is False and torch.is_grad_enabled():
            raise ArithmeticError("no training")
        return super().forward(x)


class Stuck(Plain):
    def step(self, closure=None):
        raise KeyError("momentum")


class Weighty(Net):
    def __init__(self, num_classes, initialization):
        super().__init__(num_classes)
"""
CHANGES: dict[str, Any] = {
    "model": {"name": "own.parts:Net", "width": 2, "channels": 1},
    "training": {
        "epochs": 2,
        "learning_rate": 0.02,
        "loss": {"name": "own.parts:Entropy", "weight": 2.0},
        "optimizer": {"name": "own.parts:Plain", "weight_decay": 0.1},
    },
}


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Give a function that forgets the user's parts, as a new process does; at the end, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    tables = [MODELS._members, LOSSES._members, LOSSES._facts]
    tables += [OPTIMIZERS._members, OPTIMIZERS._facts]
    own = [(table, dict(table)) for table in tables]

    def begin_anew() -> None:
        for table, members in own:
            table.clear()
            table.update(members)
        for kept in (user_parts._SOURCES, user_training._CLASSES, user_modules._IMPORTED):
            kept.clear()
        for name in set(sys.modules) - known:
            if name.partition(".")[0] in ("own", "parts_of"):
                del sys.modules[name]

    yield begin_anew
    begin_anew()


def write(folder: Path, changes: dict[str, Any] | None = None, text: str = OWN) -> Path:
    """Write own/parts.py, parts.py and a recipe of what is in the first."""
    (folder / "own").mkdir(exist_ok=True)
    for path in (folder / "own" / "parts.py", folder / "parts.py"):
        path.write_text(text)
    return write_recipe(folder, CHANGES | (changes or {}))


def train(recipe: Path, folder: Path, **more: Any) -> None:
    pipeline.train(recipe, run_dir=folder, device="cpu", **more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def same(one: Path, two: Path) -> bool:
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_parts_of_a_file_and_of_a_module_give_the_run_of_built_in_ones(tmp_path: Path) -> None:
    plain = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1}
    changes = {"training.loss": "cross_entropy", "training.optimizer": plain}
    train(write(tmp_path, {"training.epochs": 1} | changes), tmp_path / "built_in")
    for of in ("own.parts", "parts.py"):
        parts = {
            "model.name": f"{of}:Net",
            "training.loss": f"{of}:entropy",
            "training.optimizer.name": f"{of}:Fused",
        }
        train(write(tmp_path, {"training.epochs": 1} | parts), tmp_path / f"run of {of}")
        assert same(tmp_path / f"run of {of}", tmp_path / "built_in")
    double = {"training.loss": {"name": "parts.py:Entropy", "weight": 2.0}}
    train(write(tmp_path, {"training.epochs": 1} | double), tmp_path / "double")
    assert not same(tmp_path / "double", tmp_path / "built_in")


COMMANDS = [
    ["train", "r.yaml", "--run-dir", "run", "--resume", "--device", "cpu", "--no-report"],
    ["convert", "run", "--device", "cpu"],
    ["inspect", "run"],
    ["inspect", "run/integer.safetensors"],
    ["inspect", "r.yaml"],
]
MORE = [
    ["export", "run"],
    ["inspect", "run", "--output", "page.html"],
    ["export", "alone.safetensors", "--output", "again.onnx"],
    ["compare", "runs", "run", "whole", "run/model.onnx", "again.onnx"],
    ["bench", "run", "--rounds", "2"],
]


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("of", "more"),
    [
        ("parts.py", []),
        pytest.param("own.parts", MORE, marks=pytest.mark.slow),
        pytest.param("parts.py", MORE, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_own_parts_goes_on_and_is_used_in_new_processes(
    of: str,
    more: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {
        "model.name": f"{of}:Net",
        "training.loss.name": f"{of}:Entropy",
        "training.optimizer.name": f"{of}:Plain",
    }
    recipe = write(tmp_path, parts)
    train(recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qtool.runs.epochs.say_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run")
    for command in COMMANDS + more:
        forget()
        code, _, err = shell(*command)
        assert code in (0, None), (command, err)
        if command[0] == "convert":  # a file alone finds its parts as well
            shutil.copy(tmp_path / "run" / "integer.safetensors", tmp_path / "alone.safetensors")
    assert same(tmp_path / "run", tmp_path / "whole")
    forget()
    assert shell("inspect", "alone.safetensors")[0] in (0, None)


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_network_without_sizes_is_given_them_by_an_image(
    tmp_path: Path, forget: Callable[[], None]
) -> None:
    parts = {"model": {"name": "parts.py:sequential", "channels": 1}, "training.epochs": 1}
    train(write(tmp_path, parts), tmp_path / "run")
    forget()
    assert pipeline.convert(tmp_path / "run", device="cpu", run_code=True).left_float == {}


def test_a_run_keeps_what_finds_its_parts_again(tmp_path: Path, forget: Any) -> None:
    digest = hashlib.sha256(OWN.encode()).hexdigest()
    parts = {"model.name": "parts.py:Net", "training.epochs": 1}
    train(write(tmp_path, parts), tmp_path / "run")
    said = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert said["part_sources"] == {
        "parts.py": {"sha256": digest, "version": "", "folder": ""},
        "own.parts": {"sha256": digest, "version": "", "folder": str(tmp_path)},
    }
    assert (tmp_path / "run" / "parts.py").read_text() == OWN


def test_another_source_is_another_run(tmp_path: Path, forget: Callable[[], None]) -> None:
    write(tmp_path)
    train(tmp_path / "r.yaml", tmp_path / "run")
    write(tmp_path, text=OWN.replace("mean((2, 3))", "sum((2, 3))"))
    forget()
    command = ["train", "r.yaml", "--run-dir", "run", "--device", "cpu", "--resume"]
    assert "holds a run with another own.parts" in refused(tmp_path, *command)


def test_parts_of_anothers_run_run_where_the_user_says(
    tmp_path: Path, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"model.name": "parts.py:Net", "training": {"epochs": 1, "learning_rate": 0.01}}
    train(write(tmp_path, parts), tmp_path / "run")
    pipeline.convert(tmp_path / "run", device="cpu", run_code=True)
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(tmp_path / "run", here / "run")
    forget()
    for command in (["convert", "run"], ["inspect", "run/integer.safetensors"], ["inspect", "run"]):
        why = refused(here, *command)
        assert "parts.py: not in the working directory, nor on PYTHONPATH; --run-code runs" in why
    monkeypatch.chdir(here)
    for command in (["convert", "run", "--device", "cpu"], ["inspect", "run"]):
        forget()
        code, _, err = shell(*command, "--run-code")
        assert code in (0, None), err


def test_a_module_that_is_not_found_is_said_to_have_lain_somewhere(
    tmp_path: Path, forget: Callable[[], None]
) -> None:
    (tmp_path / "mine").mkdir()
    train(write(tmp_path / "mine", {"training.epochs": 1}), tmp_path / "run")
    forget()
    why = refused(tmp_path, "convert", "run")
    where = f"own.parts: not in the working directory, nor on PYTHONPATH; it lay in {tmp_path}/mine"
    assert where in why


def test_code_in_a_folder_that_only_looks_like_a_run_does_not_run(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    marking = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).write_text('ran')\n"
    write(theirs, {"model.name": "parts.py:Net"}, marking + OWN)
    (theirs / "r.yaml").rename(theirs / "recipe.yaml")
    for command in (["convert", "theirs"], ["inspect", "theirs"], ["export", "theirs"]):
        assert refused(tmp_path, *command)
        assert not (tmp_path / "mark").exists()


def test_another_run_calls_nothing_that_is_installed(tmp_path: Path, forget: Any) -> None:
    parts = {"model.name": "parts.py:Net", "training": {"epochs": 1, "learning_rate": 0.01}}
    train(write(tmp_path, parts), tmp_path / "run")
    (tmp_path / "kept").mkdir()
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    named = f"name: 'shutil:rmtree', path: '{tmp_path / 'kept'}'"
    changed = recipe.replace("name: 'parts.py:Net'", named)
    assert changed != recipe
    (tmp_path / "run" / "recipe.yaml").write_text(changed)
    for command in (["convert", "run"], ["inspect", "run"]):
        assert "--run-code imports what is installed" in refused(tmp_path, *command)
    assert (tmp_path / "kept").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "near miss": (
        {"model": {"name": "own.parts:Nett"}},
        "model.name: PARTS: has no class or function Nett; did you mean Net?",
    ),
    "parameter": (
        {"model": {"name": "own.parts:Net", "widht": 3}},
        "model.widht: own.parts:Net has no parameter widht; did you mean width?",
    ),
    "value": (
        {"model": {"name": "own.parts:Net", "width": 1.5}},
        "model.width: 1.5 is not a whole number",
    ),
    "needed": ({"model": {"name": "own.parts:Late"}}, "model.depth: missing; own.parts:Late needs"),
    "raises": (
        {"model": {"name": "own.parts:Late", "depth": 9}},
        "PARTS:77: ValueError: no depth of 9",
    ),
    "outputs": (
        {"model": {"name": "own.parts:Wide"}},
        "PARTS:58: Wide has 13 outputs, and the data have 10 classes; leave model.num_classes to",
    ),
    "two outputs": (
        {"model": {"name": "own.parts:Two"}},
        "Two returns tuple; a network gives logits",
    ),
    "forward": (
        {"model": {"name": "own.parts:Fixed"}},
        "PARTS:13: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x8 and 9x10), on "
        "images [1, 3, 16, 16]",
    ),
    "channels": (
        {"model": {"name": "own.parts:Net", "in_channels": 5}},
        "on images [1, 3, 16, 16]; model.channels and data.image_size say what they are",
    ),
    "channels of a built-in": (
        {"model": {"name": "lenet5", "channels": 3}},
        "model.channels: lenet5 takes the channels of its images; leave it out",
    ),
    "no network": (
        {"model": {"name": "own.parts:not_a_network"}},
        "makes int, which is no torch.nn.Module",
    ),
    "class of another kind": (
        {"training.optimizer": "own.parts:Entropy"},
        "training.optimizer: PARTS:",
    ),
    "loss": (
        {"training.loss": {"name": "own.parts:Entropy", "weigth": 3.0}},
        "training.loss.weigth: own.parts:Entropy has no parameter weigth; did you mean weight?",
    ),
    "loss of rows": (
        {"training.loss": "own.parts:rowwise"},
        "rowwise returned the shape [32]; a loss is a mean over the batch, of shape []",
    ),
    "loss that fails": ({"training.loss": "own.parts:failing"}, "PARTS:55: KeyError: 'mask'"),
    "loss without labels": (
        {"training.loss": "own.parts:not_a_network"},
        "not_a_network must take logits and labels",
    ),
    "optimizer": (
        {"training.optimizer": {"name": "own.parts:Plain", "momentum": 0.9}},
        "training.optimizer.momentum: own.parts:Plain has no parameter momentum",
    ),
    "only in training": (
        {"model": {"name": "own.parts:Trained"}},
        "PARTS:87: ArithmeticError: no training",
    ),
    "only in a step": (
        {"training.optimizer": "own.parts:Stuck"},
        "PARTS:93: KeyError: 'momentum'",
    ),
    "a key of qtool's": (
        {"model": {"name": "own.parts:Weighty"}},
        "model.initialization: own.parts:Weighty needs it, and it is a key of qtool's; give it",
    ),
    "no module": ({"training.loss": "ownn.parts:entropy"}, "training.loss: ownn.parts: no such"),
}


@pytest.mark.parametrize(("changes", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_says_where_and_what_would_be_right(
    changes: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, changes)
    code, _, err = shell("train", "r.yaml", "--run-dir", "run", "--device", "cpu")
    assert code == 2
    assert "Traceback" not in err
    message = " ".join(err.split())
    assert why.replace("PARTS", str(tmp_path / "own" / "parts.py")) in message
